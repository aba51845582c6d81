"""What shows only in a process of its own: what is imported, and how an end looks."""

import subprocess
import sys

import pytest

from secateur.version import __version__


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["prune", "--help"], ["compare", "--help"], ["ls", "methods"], ["ls", "families"], ["ls", "presets"]],
)
def test_no_torch_before_it_is_needed(arguments: list[str]) -> None:
    done = python(
        f"import sys; sys.argv = ['secateur', *{arguments!r}]\n"
        "from secateur.cli.app import main\n"
        "try: main()\n"
        "except SystemExit as end: print('code', end.code)\n"
        "print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    assert done.stdout.splitlines()[-2:] == ["code 0", "False False"], done.stderr


def test_the_package_imports_no_torch() -> None:
    done = python("import sys, secateur; print(secateur.UserError.__name__, sorted(dir(secateur)), 'torch' in sys.modules)")
    assert done.stdout.strip() == (
        "UserError ['Probe', 'ProbePruning', 'ProbeRefit', 'RefitState', 'State', 'UserError', '__version__', 'evaluate', "
        "'evaluate_tasks', 'export_model', 'load', 'probe', 'prune', 'register'] False"
    )


def test_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "secateur", "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"secateur {__version__}\n")


def test_a_traceback_names_the_bug() -> None:
    done = python(
        "import sys, types\n"
        "module = types.ModuleType('secateur.recipes.demo')\n"
        "module.demo = lambda report: 1 / 0\n"
        "sys.modules['secateur.recipes.demo'] = module\n"
        "sys.argv = ['secateur', 'demo']\n"
        "from secateur.cli.app import main\n"
        "main()"
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-2] == "ZeroDivisionError: division by zero"
    assert "bug in Secateur" in done.stderr.splitlines()[-1]
