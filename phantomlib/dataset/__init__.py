"""Many targets trained together: which of them will a fine-tuning on a data set teach?"""
