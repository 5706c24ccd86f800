"""What the notebooks share: data, network, training, equivalence, statistics, presentation.

Importing this package fixes the process: one thread, deterministic kernels, quiet logs. Results are then the same
bits from run to run on one machine type; the thread count changes them, so it is not left to chance.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # whatever a job system gives: other devices, other bits
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # it changes the bits, so it is said: see the runs' keys
for library in ("OMP", "OPENBLAS", "MKL"):
    os.environ[f"{library}_NUM_THREADS"] = "1"

# Of oneDNN and CUDA, TensorFlow tells before any log level counts, straight to the process's stderr.
kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
os.dup2(nowhere, 2)
try:
    import tensorflow as tf
finally:
    os.dup2(kept, 2)
    os.close(kept)
    os.close(nowhere)

tf.config.threading.set_intra_op_parallelism_threads(1)
tf.config.threading.set_inter_op_parallelism_threads(1)
tf.config.experimental.enable_op_determinism()
tf.random.set_seed(2612)
tf.get_logger().setLevel("ERROR")
