// Waiting for descriptors: include/uapi/asm-generic/poll.h.

export const POLLIN = 1;
/** A byte of a terminal's status, out of band data. */
export const POLLPRI = 2;
export const POLLOUT = 4;
export const POLLERR = 8;
export const POLLHUP = 0x10;
export const POLLRDHUP = 0x2000;
