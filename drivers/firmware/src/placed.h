/* Large buffers, each in the memory that the build has chosen for it; none is zero at the start. */
#ifndef AI_PLACED_H
#define AI_PLACED_H

#ifdef __arm__
#define PLACED(name) __attribute__((section(name)))
#else /* a computer has one memory */
#define PLACED(name)
#endif

#endif
