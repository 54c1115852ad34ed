// bpf(2): include/uapi/linux/bpf.h.

export const BPF_MAP_CREATE = 0;
export const BPF_PROG_LOAD = 5;
export const BPF_PROG_TEST_RUN = 10;
export const BPF_PROG_GET_NEXT_ID = 11;
export const BPF_PROG_GET_FD_BY_ID = 13;
export const BPF_MAP_GET_FD_BY_ID = 14;
export const BPF_OBJ_GET = 7;
export const BPF_OBJ_GET_INFO_BY_FD = 15;
export const BPF_MAP_FREEZE = 22;
export const BPF_MAP_LOOKUP_BATCH = 24;
export const BPF_MAP_UPDATE_BATCH = 26;

export const BPF_MAP_TYPE_HASH = 1;
export const BPF_MAP_TYPE_ARRAY = 2;
export const BPF_MAP_TYPE_PERCPU_HASH = 5;
export const BPF_MAP_TYPE_PERCPU_ARRAY = 6;
export const BPF_MAP_TYPE_LRU_HASH = 9;
export const BPF_MAP_TYPE_LRU_PERCPU_HASH = 10;
export const BPF_MAP_TYPE_LPM_TRIE = 11;

/** Flags of a map and of a descriptor of one: what system calls may do by it. */
export const BPF_F_RDONLY = 1 << 3;
export const BPF_F_WRONLY = 1 << 4;
/** Flag of a map: its values can be mapped into memory. */
export const BPF_F_MMAPABLE = 1 << 10;

/** A program that a system call runs, once. */
export const BPF_PROG_TYPE_SYSCALL = 31;
/** Flag of a program. */
export const BPF_F_SLEEPABLE = 1 << 4;

/** union bpf_attr of BPF_MAP_CREATE, up to map_extra. */
export const MAP_CREATE_SIZE = 72;
/** BPF_OBJ_NAME_LEN, with the zero at the end. */
export const BPF_NAME_SIZE = 16;
