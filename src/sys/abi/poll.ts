// Waiting for descriptors: include/uapi/asm-generic/poll.h.

export const POLLIN = 1;
