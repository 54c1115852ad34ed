// perf_event_open(2): include/uapi/linux/perf_event.h and hw_breakpoint.h.

/** struct perf_event_attr up to bp_len (PERF_ATTR_SIZE_VER1), and its fields. */
export const ATTR_SIZE = 72;
export const AT_CONFIG = 8;
export const AT_FLAGS = 40;
export const AT_BP_TYPE = 52;
export const AT_BP_ADDR = 56;
export const AT_BP_LEN = 64;

export const PERF_TYPE_SOFTWARE = 1;
export const PERF_TYPE_BREAKPOINT = 5;
/** An event that counts nothing. */
export const PERF_COUNT_SW_DUMMY = 9;

export const HW_BREAKPOINT_X = 4;
/** sizeof(long): the only length of a breakpoint on execution. */
export const EXECUTION_LENGTH = 8;

/** Bits exclude_kernel and exclude_hv. */
export const USER_ONLY = 0x60;
export const PERF_FLAG_FD_CLOEXEC = 8;
