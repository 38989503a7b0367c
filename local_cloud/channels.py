"""Where the data of a job comes from: S3 prefixes and manifests, whole or divided among hosts.

`File` and `FastFile` are one thing here: the objects are copied before the script starts, instead
of being fetched when a file is opened.
"""

import json
from collections import Counter
from dataclasses import dataclass

from botocore.exceptions import ClientError

from local_cloud.aws import split_uri
from local_cloud.errors import JobFailed, invalid

MODES = ("File", "FastFile")
DATA_TYPES = ("S3Prefix", "ManifestFile")


@dataclass(frozen=True)
class Source:
    """Objects in S3.

    Attributes:
        uri: an object, a prefix, or the manifest that lists the objects.
        data_type: `S3Prefix` or `ManifestFile`.
        distribution: `FullyReplicated`, or `ShardedByS3Key`: host i of n gets every n-th object in
            the order of their keys.
    """

    uri: str
    data_type: str = "S3Prefix"
    distribution: str = "FullyReplicated"

    def objects(self, aws):
        """(bucket, prefix, keys): the keys begin with the prefix, which is no part of file names.

        Raises:
            JobFailed: nothing is there, or the manifest is none.
        """
        bucket, prefix = split_uri(self.uri)
        if self.data_type == "S3Prefix":
            return bucket, prefix, aws.keys(self.uri)
        return read_manifest(aws, self.uri)

    def download(self, aws, folders):
        """Copy the objects into the folders of the hosts, as the distribution says.

        Raises:
            JobFailed: nothing is there, or the manifest is none.
        """
        bucket, prefix, keys = self.objects(aws)
        for rank, folder in enumerate(folders):
            sharded = self.distribution == "ShardedByS3Key"
            part = sorted(keys)[rank :: len(folders)] if sharded else keys
            folder.mkdir(parents=True, exist_ok=True)
            aws.download_keys(bucket, prefix, part, folder)


def read_manifest(aws, uri):
    """(bucket, prefix, keys) of a manifest, `[{"prefix": "s3://…"}, "relative/key", …]`.

    Source: Amazon SageMaker API Reference, S3DataSource.

    Raises:
        JobFailed: there is no such object, or it does not have this form.
    """
    bucket, key = split_uri(uri)
    try:
        text = aws.s3.get_object(Bucket=bucket, Key=key)["Body"].read()
        head, *names = json.loads(text)
        bucket, prefix = split_uri(head["prefix"])
        if not names or not all(isinstance(name, str) for name in names):
            raise ValueError("it must list at least one key, and only strings")
    except ClientError as error:
        raise JobFailed(f"ClientError: Data download failed: {uri}: {error}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise JobFailed(
            f"ClientError: Data download failed: {uri} is not a manifest of the form "
            f'[{{"prefix": "s3://bucket/prefix/"}}, "key", ...]: {error}'
        ) from error
    return bucket, prefix, [prefix + name for name in names]


def source_of(channel):
    """The `Source` of a training channel."""
    source = channel["DataSource"]["S3DataSource"]
    distribution = source.get("S3DataDistributionType", "FullyReplicated")
    return Source(source["S3Uri"], source["S3DataType"], distribution)


def check_channels(channels, default_mode):
    """Refuse training channels that cannot be read here, or by the service's own rules.

    Args:
        default_mode: the `TrainingInputMode` of the algorithm.

    Raises:
        ServiceError: ValidationException with the reason.
    """
    counts = Counter(channel["ChannelName"] for channel in channels)
    for name, count in counts.items():
        if name in (".", ".."):
            raise invalid(f"{name!r} cannot name a channel.")
        if count > 1:
            raise invalid(f"Channel names must be unique; {count} are called {name!r}.")
    for channel in channels:
        check_channel(channel, channel.get("InputMode", default_mode))


def check_channel(channel, mode):
    name = channel["ChannelName"]
    source = channel["DataSource"].get("S3DataSource")
    if source is None:
        raise invalid(
            f"local_cloud reads channels from an S3DataSource, of S3DataType S3Prefix or "
            f"ManifestFile; channel {name!r} has none."
        )
    if mode not in MODES:
        raise invalid(
            f"local_cloud offers the input modes File and FastFile, not {mode} as channel "
            f"{name!r} asks for."
        )
    check_source(source["S3DataType"], source["S3Uri"], f"channel {name!r}")
    # The service uses both in Pipe mode only: API reference, Channel.
    if channel.get("CompressionType", "None") != "None":
        raise invalid(f"CompressionType of channel {name!r} must be None in {mode} mode.")
    if channel.get("RecordWrapperType", "None") != "None":
        raise invalid(f"RecordWrapperType of channel {name!r} must be None in {mode} mode.")
    if source.get("InstanceGroupNames"):
        raise invalid(f"local_cloud has no instance groups, which channel {name!r} names.")


def check_source(data_type, uri, owner):
    """Refuse data that is not in S3, or of a type that is not read here."""
    if data_type not in DATA_TYPES:
        raise invalid(
            f"local_cloud reads the S3DataType S3Prefix or ManifestFile; {owner} is of type "
            f"{data_type}, which the service offers in Pipe mode only."
            if data_type == "AugmentedManifestFile"
            else f"local_cloud reads the S3DataType S3Prefix or ManifestFile; {owner} is of type "
            f"{data_type}."
        )
    if not uri.startswith("s3://"):
        raise invalid(f"local_cloud reads addresses that begin with s3://; {owner} has {uri!r}.")


def input_data_config(channels, default_mode):
    """What `inputdataconfig.json` says."""
    described = {}
    for channel in channels:
        config = {
            "TrainingInputMode": channel.get("InputMode", default_mode),
            "S3DistributionType": source_of(channel).distribution,
            "RecordWrapperType": "None",
        }
        if "ContentType" in channel:
            config["ContentType"] = channel["ContentType"]
        described[channel["ChannelName"]] = config
    return described
