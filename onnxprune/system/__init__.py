"""The layer between the package and the machine.

memory         work again in smaller batches when memory runs out     isolation   native code in a process of its own
processes      several processes, started by torchrun                 plugins     the user's own functions
atomic_files   files that appear together, whole, or not at all
"""
