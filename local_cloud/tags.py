"""Tags of SageMaker resources."""

from local_cloud.errors import invalid
from local_cloud.store import MIN_PAGE_OF_TAGS, cut


class Tags:
    """AddTags, ListTags and DeleteTags."""

    def __init__(self, store):
        self.store = store
        self.operations = {
            "AddTags": self.add,
            "ListTags": self.list,
            "DeleteTags": self.delete,
        }

    def add(self, params, region):
        self.check(params)
        self.store.set_tags(params["ResourceArn"], params["Tags"])
        return {"Tags": self.store.tags(params["ResourceArn"])}

    def list(self, params, region):
        self.check(params)
        tags, token = cut(self.store.tags(params["ResourceArn"]), params, MIN_PAGE_OF_TAGS)
        return {"Tags": tags, **({"NextToken": token} if token else {})}

    def delete(self, params, region):
        self.check(params)
        self.store.remove_tags(params["ResourceArn"], params["TagKeys"])

    def check(self, params):
        if not self.store.has_arn(params["ResourceArn"]):
            raise invalid(f"The resource {params['ResourceArn']} does not exist.")
