// A PJRT plugin of a vendor that does not exist: a real CPU plugin behind another name.
//
// The table of the real plugin is copied and a few of its functions are replaced, so that JAX sees a
// platform that it does not know, with device kinds of its own, memory that is not the host's, and
// executions and copies that take as long, or fail as often, as a test wants. Chosen over a mock in
// Python because everything above PJRT is then the code that a real vendor's plugin meets.
//
// Compiled with VENDOR (the platform's name), KIND (of its devices), SETTINGS (prefix of its environment
// variables) and REAL (path of the real plugin). A real plugin that is newer than the header has a longer
// table; PJRT only ever appends to it, so the rest is copied unseen.
//
// Settings, in seconds, from the environment when the plugin is loaded and later by vendor_set:
//   SETTINGS_EXECUTE_S     before each execution
//   SETTINGS_TO_DEVICE_S   before each copy from the host
//   SETTINGS_TO_HOST_S     before each copy to the host
// and a number of executions, SETTINGS_FAIL: so many fail, and all of them if it is negative.
// A delay holds the calling thread, as a device without a queue would.

#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "pjrt_c_api.h"

enum { EXECUTE, TO_DEVICE, TO_HOST, NUM_EVENTS };
static const char* const DELAYS[NUM_EVENTS] = {
    SETTINGS "_EXECUTE_S", SETTINGS "_TO_DEVICE_S", SETTINGS "_TO_HOST_S"};

static const PJRT_Api* real;
static PJRT_Api* api;
static _Atomic double delays_s[NUM_EVENTS];
static atomic_long counts[NUM_EVENTS];
static atomic_long failures;
static _Atomic int failure_code = PJRT_Error_Code_INTERNAL;
static PJRT_Client* _Atomic client;

// What a test calls through ctypes.
void vendor_set_delay(int event, double seconds) { delays_s[event] = seconds; }
long vendor_count(int event) { return counts[event]; }
void vendor_fail(long executions, int code) { failure_code = code; failures = executions; }

static void happen(int event) {
  atomic_fetch_add(&counts[event], 1);
  double seconds = delays_s[event];
  struct timespec rest = {(time_t)seconds, (long)((seconds - (time_t)seconds) * 1e9)};
  while (seconds > 0 && nanosleep(&rest, &rest)) {
  }
}

// Errors. JAX may ask the real plugin about an error through a function that this header does not
// have, so an injected one is a real one; only its message and its code are ours.
enum { MOST_ERRORS = 256 };
static const PJRT_Error* injected[MOST_ERRORS];
static int injected_codes[MOST_ERRORS];
static pthread_mutex_t injected_lock = PTHREAD_MUTEX_INITIALIZER;
static const char MESSAGE[] = "injected failure of " VENDOR;

static int find(const PJRT_Error* error) {
  for (int i = 0; i < MOST_ERRORS; i++)
    if (injected[i] == error) return i;
  return -1;
}

static PJRT_Error* inject(void) {
  PJRT_Client_LookupDevice_Args args;
  memset(&args, 0, sizeof args);
  args.struct_size = PJRT_Client_LookupDevice_Args_STRUCT_SIZE;
  args.client = client;
  args.id = -1;  // no device has it
  PJRT_Error* error = real->PJRT_Client_LookupDevice(&args);
  pthread_mutex_lock(&injected_lock);
  int i = find(NULL);
  if (i >= 0) injected[i] = error, injected_codes[i] = failure_code;
  pthread_mutex_unlock(&injected_lock);
  return error;
}

static void error_destroy(PJRT_Error_Destroy_Args* args) {
  pthread_mutex_lock(&injected_lock);
  int i = args->error ? find(args->error) : -1;
  if (i >= 0) injected[i] = NULL;
  pthread_mutex_unlock(&injected_lock);
  real->PJRT_Error_Destroy(args);
}

static void error_message(PJRT_Error_Message_Args* args) {
  real->PJRT_Error_Message(args);
  pthread_mutex_lock(&injected_lock);
  if (find(args->error) >= 0) args->message = MESSAGE, args->message_size = strlen(MESSAGE);
  pthread_mutex_unlock(&injected_lock);
}

static PJRT_Error* error_code(PJRT_Error_GetCode_Args* args) {
  PJRT_Error* failure = real->PJRT_Error_GetCode(args);
  pthread_mutex_lock(&injected_lock);
  int i = find(args->error);
  if (i >= 0) args->code = injected_codes[i];
  pthread_mutex_unlock(&injected_lock);
  return failure;
}

// Names.
static PJRT_Error* client_create(PJRT_Client_Create_Args* args) {
  PJRT_Error* error = real->PJRT_Client_Create(args);
  if (!error) client = args->client;
  return error;
}

static PJRT_Error* client_platform(PJRT_Client_PlatformName_Args* args) {
  PJRT_Error* error = real->PJRT_Client_PlatformName(args);
  args->platform_name = VENDOR;
  args->platform_name_size = strlen(VENDOR);
  return error;
}

static PJRT_Error* topology_platform(PJRT_TopologyDescription_PlatformName_Args* args) {
  PJRT_Error* error = real->PJRT_TopologyDescription_PlatformName(args);
  args->platform_name = VENDOR;
  args->platform_name_size = strlen(VENDOR);
  return error;
}

static PJRT_Error* device_kind(PJRT_DeviceDescription_Kind_Args* args) {
  PJRT_Error* error = real->PJRT_DeviceDescription_Kind(args);
  args->device_kind = KIND;
  args->device_kind_size = strlen(KIND);
  return error;
}

// Memory that is not the host's: what comes from there is copied, and what goes there too.
static PJRT_Error* to_device(PJRT_Client_BufferFromHostBuffer_Args* args) {
  happen(TO_DEVICE);
  if (args->host_buffer_semantics == PJRT_HostBufferSemantics_kImmutableZeroCopy ||
      args->host_buffer_semantics == PJRT_HostBufferSemantics_kMutableZeroCopy)
    args->host_buffer_semantics = PJRT_HostBufferSemantics_kImmutableUntilTransferCompletes;
  return real->PJRT_Client_BufferFromHostBuffer(args);
}

static PJRT_Error* to_host(PJRT_Buffer_ToHostBuffer_Args* args) {
  if (args->dst) happen(TO_HOST);  // without one it is a question for the size
  return real->PJRT_Buffer_ToHostBuffer(args);
}

static PJRT_Error* is_on_cpu(PJRT_Buffer_IsOnCpu_Args* args) {
  PJRT_Error* error = real->PJRT_Buffer_IsOnCpu(args);
  args->is_on_cpu = false;
  return error;
}

static PJRT_Error* execute(PJRT_LoadedExecutable_Execute_Args* args) {
  happen(EXECUTE);
  for (long left = failures; left; left = failures)
    if (left < 0 || atomic_compare_exchange_strong(&failures, &left, left - 1)) return inject();
  return real->PJRT_LoadedExecutable_Execute(args);
}

const PJRT_Api* GetPjrtApi(void) {
  if (api) return api;
  void* library = dlopen(REAL, RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    fprintf(stderr, VENDOR ": %s\n", dlerror());
    return NULL;
  }
  real = ((const PJRT_Api* (*)(void))dlsym(library, "GetPjrtApi"))();
  for (int event = 0; event < NUM_EVENTS; event++) {
    const char* value = getenv(DELAYS[event]);
    if (value) delays_s[event] = atof(value);
  }
  const char* value = getenv(SETTINGS "_FAIL");
  if (value) failures = atol(value);
  PJRT_Api* table = malloc(real->struct_size);
  memcpy(table, real, real->struct_size);
  table->PJRT_Error_Destroy = error_destroy;
  table->PJRT_Error_Message = error_message;
  table->PJRT_Error_GetCode = error_code;
  table->PJRT_Client_Create = client_create;
  table->PJRT_Client_PlatformName = client_platform;
  table->PJRT_TopologyDescription_PlatformName = topology_platform;
  table->PJRT_DeviceDescription_Kind = device_kind;
  table->PJRT_Client_BufferFromHostBuffer = to_device;
  table->PJRT_Buffer_ToHostBuffer = to_host;
  table->PJRT_Buffer_IsOnCpu = is_on_cpu;
  table->PJRT_LoadedExecutable_Execute = execute;
  return api = table;
}
