def cached_features(*a):
    raise NotImplementedError
