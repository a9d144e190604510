"""What is found to be tried: by names and paths only."""

import json

from gimlax.devices.candidates import find_candidates, find_missing


def named(value):
    found = find_candidates({"PJRT_NAMES_AND_LIBRARY_PATHS": value})
    return [c for c in found if c.source == "PJRT_NAMES_AND_LIBRARY_PATHS"]


def test_the_environment_names_libraries_and_configurations(tmp_path):
    library = tmp_path / "lib.so"
    library.touch()
    config = tmp_path / "plugin.json"
    config.write_text(json.dumps({"library_path": str(library), "create_options": {"n": 2}}))
    plain, configured = named(f"one:{library},two:{config}")
    assert (plain.name, plain.library, plain.options, plain.fault) == ("one", str(library), (), "")
    assert (configured.name, configured.library) == ("two", str(library))
    assert (configured.options, configured.fault) == ((("n", 2),), "")


def test_what_the_environment_names_in_vain_says_why(tmp_path):
    (tmp_path / "bad.json").write_text("[]")
    (tmp_path / "empty.json").write_text("{}")
    faults = [
        c.fault
        for c in named(f"a:/gone.so,b,c:{tmp_path}/bad.json,d:{tmp_path}/empty.json,e:/gone.json")
    ]
    assert "names /gone.so, which is no file" in faults[0]
    assert "has 'b'; write name:path" in faults[1]
    assert "bad.json, which is no plugin configuration" in faults[2]
    assert "library_path" in faults[3]
    assert "/gone.json, which is no plugin configuration" in faults[4]


def test_modules_in_the_namespace_package_are_found(tmp_path, monkeypatch):
    (tmp_path / "jax_plugins").mkdir()
    (tmp_path / "jax_plugins" / "xla_cuda13.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    (module,) = [c for c in find_candidates({}) if c.module == "jax_plugins.xla_cuda13"]
    assert module.name == module.module
    assert "cuda" not in dict(find_missing({}))


def test_what_is_not_installed_says_what_to_install(monkeypatch, tmp_path):
    missing = dict(find_missing({}))
    assert "jax[tpu]" in missing["tpu"]
    assert "tpu" not in dict(find_missing({"TPU_LIBRARY_PATH": "/lib.so"}))


def test_the_environment_goes_before_an_installed_wheel(plugin_name, tmp_path):
    (installed,) = [c for c in find_candidates({}) if c.name == plugin_name]
    assert installed.source.startswith("package ")
    assert installed.fault == ""
    library = tmp_path / "lib.so"
    library.touch()
    (named_one,) = named(f"{plugin_name}:{library}")
    assert named_one.library == str(library)
    assert named_one.priority > installed.priority
