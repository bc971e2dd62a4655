"""From which learning rate on does the right word overtake, and what tells so before training?"""
