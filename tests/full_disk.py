"""A disk that is full for a while."""

import resource


class OnFullDisk:
    """Files of this process cannot grow beyond a few bytes while the block runs."""

    def __enter__(self):
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (600, self.before[1]))

    def __exit__(self, *_):
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)
