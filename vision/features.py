def cached_features(*a):
    pass
