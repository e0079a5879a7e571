# What OpenMP and the C library read when a program starts; whoever sets these has the last word. Read by the Makefile, by
# scripts/environment.py and, when it was built, by the program, which sets what is lacking (src/environment.rs).

# OpenMP's waiting threads soon sleep instead of spinning for milliseconds: on a machine that other work loads, that is several
# times faster. Soon, not at once: a decoding step has hundreds of short waits.
export OMP_WAIT_POLICY ?= passive
export GOMP_SPINCOUNT ?= 5000
# Freed memory stays with the process: clearing fresh pages is a sixth of the processor's time in a step of SmolLM2-135M.
export MALLOC_MMAP_THRESHOLD_ ?= 4294967296
export MALLOC_TRIM_THRESHOLD_ ?= 68719476736
