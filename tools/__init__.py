"""What sets the project up and makes its pages: the environment, the rubric, the site."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def notebooks_of(root: Path) -> list[Path]:
    """The notebooks of the project, the course first."""
    return [root / "train_and_deploy.ipynb", *sorted((root / "notebooks").glob("*.ipynb"))]
