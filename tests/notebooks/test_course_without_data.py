"""The course where neither the data nor a network is at hand: scikit-learn's digits stand in."""

import pytest
from notebook_runs import COURSE, FEW, accuracy, assert_clean, run_notebook

CLOSED_PORT = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    cut = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), CLOSED_PORT)
    folder = tmp_path_factory.mktemp("digits")
    # So few pictures that a shorter trial would choose at random.
    chosen = {"PICTURES": 300, "EPOCHS": 8, "TRIAL_EPOCHS": 6, "TRIAL_SHARE": 1}
    yield from run_notebook(folder, COURSE, {**FEW, **chosen}, cut)


def test_without_data_and_network_the_digits_stand_in_loudly(digits):
    assert_clean(digits.notebook)
    banner = digits.output_of("dataset.banner()")
    assert "This run does not use Fashion-MNIST" in banner
    assert "DATA_DIR" in banner
    assert "the fall-back: no Fashion-MNIST here" in digits.process.stdout
    assert accuracy(digits) > 0.4
