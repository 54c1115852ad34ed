// io_uring(7): include/uapi/linux/io_uring.h.

/** Flags of io_uring_setup(2). */
export const IORING_SETUP_IOPOLL = 1 << 0;
export const IORING_SETUP_SQPOLL = 1 << 1;
export const IORING_SETUP_SQ_AFF = 1 << 2;
export const IORING_SETUP_CQSIZE = 1 << 3;
export const IORING_SETUP_CLAMP = 1 << 4;
export const IORING_SETUP_ATTACH_WQ = 1 << 5;
export const IORING_SETUP_R_DISABLED = 1 << 6;
export const IORING_SETUP_SUBMIT_ALL = 1 << 7;
export const IORING_SETUP_COOP_TASKRUN = 1 << 8;
export const IORING_SETUP_TASKRUN_FLAG = 1 << 9;
export const IORING_SETUP_SQE128 = 1 << 10;
export const IORING_SETUP_CQE32 = 1 << 11;
export const IORING_SETUP_SINGLE_ISSUER = 1 << 12;
export const IORING_SETUP_DEFER_TASKRUN = 1 << 13;
export const IORING_SETUP_NO_MMAP = 1 << 14;
export const IORING_SETUP_REGISTERED_FD_ONLY = 1 << 15;
export const IORING_SETUP_NO_SQARRAY = 1 << 16;

/** struct io_uring_params. */
export const PARAMS_SIZE = 120;
export const PARAMS_SQ_ENTRIES = 0;
export const PARAMS_CQ_ENTRIES = 4;
export const PARAMS_FLAGS = 8;
export const PARAMS_SQ_THREAD_CPU = 12;
export const PARAMS_SQ_THREAD_IDLE = 16;
/** struct io_sqring_offsets: offsets of head, tail, … in the rings, and the address of the entries in the process (NO_MMAP). */
export const PARAMS_SQ_OFF = 40;
export const PARAMS_CQ_OFF = 80;
/** Both end with an address. */
export const OFFSETS_USER_ADDR = 32;
export const SQ_OFF_HEAD = 0;
export const SQ_OFF_TAIL = 4;
export const SQ_OFF_FLAGS = 16;
export const SQ_OFF_DROPPED = 20;
export const SQ_OFF_ARRAY = 24;
export const CQ_OFF_HEAD = 0;
export const CQ_OFF_TAIL = 4;

/** Offsets by which memory of a ring is mapped. */
export const IORING_OFF_CQ_RING = 0x0800_0000;
export const IORING_OFF_SQES = 0x1000_0000;
export const IORING_OFF_MMAP_MASK = 0xf800_0000;

export const IORING_OP_POLL_ADD = 6;
export const IORING_OP_TIMEOUT = 11;
export const IORING_OP_ACCEPT = 13;
export const IORING_OP_READ = 22;
export const IORING_OP_WRITE = 23;
export const IORING_OP_RECV = 27;
export const IORING_OP_MSG_RING = 40;
export const IOSQE_FIXED_FILE = 1 << 0;
export const IOSQE_CQE_SKIP_SUCCESS = 1 << 6;
/** struct io_uring_sqe, and where its fields are. */
export const SQE_SIZE = 64;
export const SQE_OPCODE = 0;
export const SQE_FLAGS = 1;
export const SQE_IOPRIO = 2;
export const SQE_FD = 4;
export const SQE_OFF = 8;
export const SQE_ADDR = 16;
export const SQE_LEN = 24;
export const SQE_OP_FLAGS = 28;
export const SQE_USER_DATA = 32;

/** Flags of io_uring_enter(2). */
export const IORING_ENTER_GETEVENTS = 1 << 0;
export const IORING_ENTER_SQ_WAKEUP = 1 << 1;

/** What io_uring_register(2) does. */
export const IORING_REGISTER_BUFFERS = 0;
export const IORING_REGISTER_FILES = 2;
export const IORING_REGISTER_EVENTFD = 4;
export const IORING_REGISTER_EVENTFD_ASYNC = 7;
export const IORING_REGISTER_FILES2 = 13;
export const IORING_REGISTER_BUFFERS2 = 15;
export const IORING_REGISTER_IOWQ_MAX_WORKERS = 19;
export const IORING_REGISTER_RING_FDS = 20;
export const IORING_REGISTER_FILE_ALLOC_RANGE = 25;
export const IORING_REGISTER_CLOCK = 29;
/** struct io_uring_rsrc_register: number, flags, reserved, then pointers to the list and to the tags. */
export const RSRC_REGISTER_SIZE = 32;
export const RSRC_DATA = 16;
export const RSRC_TAGS = 24;

/** Flags of requests: of polls in `len`, of receiving in `ioprio`, of timeouts in `timeout_flags`. */
export const IORING_POLL_ADD_MULTI = 1 << 0;
export const IORING_POLL_ADD_LEVEL = 1 << 3;
export const IORING_RECVSEND_POLL_FIRST = 1 << 0;
export const IORING_TIMEOUT_ABS = 1 << 0;
export const IORING_TIMEOUT_BOOTTIME = 1 << 2;
export const IORING_TIMEOUT_REALTIME = 1 << 3;
export const IORING_TIMEOUT_MULTISHOT = 1 << 6;
