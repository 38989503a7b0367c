"""Where a model of a training job looked, by way of its artifact in S3."""

import tarfile

import numpy as np
from samples import encode

from studio.explain import fetch_model, where_it_looked


def test_an_artifact_is_fetched_and_asked(cloud, model_dir, tmp_path):
    archive = tmp_path / "model.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(model_dir, ".")
    uri = cloud.session.upload_data(str(archive), cloud.bucket, f"{cloud.prefix}/models")
    folder = fetch_model(cloud, uri, tmp_path / "fetched")
    assert (folder / "model.json").read_bytes() == (model_dir / "model.json").read_bytes()
    rows, _ = np.indices((16, 16)) // 2 % 2
    looked = where_it_looked(folder, encode(40 + 120 * rows), ["standing", "lying"])
    assert list(looked) == ["the picture", "standing", "lying"]
    for pixels in looked.values():
        assert pixels.shape == (16, 16, 3)
        assert pixels.dtype == np.uint8
    assert (looked["the picture"][:, 0] != looked["the picture"][:, 1]).sum() == 0
    assert (looked["standing"] != looked["lying"]).any()
