"""Processes of our own modules find our modules, whatever lies in the current folder."""

from instanas_tf import children


def test_the_current_folder_is_kept_out(tmp_path, monkeypatch):
    (tmp_path / "export.py").write_text("raise SystemExit('not this one')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    done = children.run_module("android_bench", "--help")
    assert done.returncode == 0
    assert "--manifest" in done.stdout
    done = children.run_module("export.worker", "no_job.json")
    assert "not this one" not in done.stderr
    assert "no_job.json" in done.stderr
