"""Tags of SageMaker resources."""


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
        self.store.set_tags(params["ResourceArn"], params["Tags"])
        return self.list(params, region)

    def list(self, params, region):
        return {"Tags": self.store.tags(params["ResourceArn"])}

    def delete(self, params, region):
        self.store.remove_tags(params["ResourceArn"], params["TagKeys"])
