"""How a transform job cuts its input into requests and puts the answers together again."""

import csv
import io
import json

from local_cloud.errors import JobFailed
from local_cloud.json_path import PathError, compile_path

JSON_TYPES = ("application/json", "application/jsonlines")
CSV_TYPES = ("text/csv",)
IDENTITY = "$"


def split(data, split_type):
    """The records of one object: its lines, or all of it; empty lines are none."""
    if split_type == "Line":
        return [line for line in data.splitlines() if line.strip()]
    return [data]


def batch(records, strategy, limit):
    """Records in groups, each of which is one request.

    Args:
        strategy: `MultiRecord` fills the requests up, `SingleRecord` sends one at a time.
        limit: bytes that a request may have; 0 for any number.

    Raises:
        JobFailed: one record alone is larger.
    """
    groups, size = [], 0
    for record in records:
        if limit and len(record) > limit:
            raise JobFailed(
                f"ClientError: a record of {len(record)} bytes is larger than MaxPayloadInMB."
            )
        fits = groups and (not limit or size + 1 + len(record) <= limit)
        if strategy == "MultiRecord" and fits:
            groups[-1].append(record)
            size += 1 + len(record)
        else:
            groups.append([record])
            size = len(record)
    return groups


class DataProcessing:
    """Filters records before the model and joins them with its answers, as JSON or CSV.

    Args:
        config: the `DataProcessing` of CreateTransformJob.
        content_type: of the input; says whether records are JSON or CSV.

    Raises:
        PathError: a filter is not understood, or the input is neither JSON nor CSV.
    """

    def __init__(self, config, content_type):
        self.is_csv = content_type in CSV_TYPES
        if content_type not in JSON_TYPES + CSV_TYPES:
            raise PathError(f"Data processing needs JSON or CSV input, not {content_type}.")
        self.input_filter = compile_path(config.get("InputFilter", IDENTITY))
        self.output_filter = compile_path(config.get("OutputFilter", IDENTITY))
        self.is_joined = config.get("JoinSource", "None") == "Input"

    def before(self, record):
        """What the model gets of a record."""
        return self.write(self.input_filter(self.read(record)))

    def after(self, record, answer):
        """What is stored for a record and the model's answer to it."""
        result = self.read(answer)
        if self.is_joined:
            result = self.join(self.read(record), result)
        return self.write(self.output_filter(result))

    def join(self, record, result):
        if self.is_csv:
            return record + result
        if isinstance(record, dict):
            return {**record, "SageMakerOutput": result}
        return {"SageMakerInput": record, "SageMakerOutput": result}

    def read(self, data):
        text = data.decode("utf-8")
        if not self.is_csv:
            return json.loads(text)
        rows = list(csv.reader(io.StringIO(text)))
        if len(rows) != 1:
            raise PathError(f"A CSV record has one row; {len(rows)} were found.")
        return rows[0]

    def write(self, value):
        if not self.is_csv:
            return json.dumps(value, separators=(",", ":")).encode()
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="").writerow(
            value if isinstance(value, list) else [value]
        )
        return buffer.getvalue().encode()
