"""Does a run fail silently? Does its order parameter jump, and is the jump a transition?"""
