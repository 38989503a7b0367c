"""Whether a training can begin with the weights that torchvision publishes."""

import threading
import urllib.request

PATIENCE = 5  # Seconds; a machine without internet may look for a name for minutes.


def at_hand(names):
    """Whether torchvision's ImageNet weights of all these networks are here or can be downloaded.

    The networks are as vision/models.py names them. At most a few seconds are spent on asking.
    """
    from vision.models import weights_source  # Here, because it loads torch.

    sources = map(weights_source, names)
    missing = [url for url, file in sources if not file.is_file()]
    return not missing or _answers(missing[0])


def _answers(url):
    """Whether the server has that address; False where nothing has come after PATIENCE."""
    answered = threading.Event()

    def ask():
        request = urllib.request.Request(url, method="HEAD")  # noqa: S310 - torchvision's own.
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE):  # noqa: S310
                answered.set()
        except OSError:
            pass

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(PATIENCE)
    return answered.is_set()
