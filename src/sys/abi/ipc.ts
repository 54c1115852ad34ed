// System V IPC: include/uapi/linux/{ipc,shm,sem,msg}.h and their structures on x86-64, include/uapi/asm-generic/*buf.h.

export const IPC_RMID = 0;
export const IPC_SET = 1;
export const IPC_STAT = 2;
export const IPC_CREAT = 0o1000;
export const IPC_EXCL = 0o2000;
export const IPC_NOWAIT = 0o4000;
export const IPC_PRIVATE = 0;

/** struct ipc64_perm, at the head of each of the three. */
export const PERM_KEY = 0;
export const PERM_UID = 4;
export const PERM_GID = 8;
export const PERM_CUID = 12;
export const PERM_CGID = 16;
export const PERM_MODE = 20;

export const SHMID_DS_SIZE = 112;
export const SHM_SEGSZ = 48;
export const SHM_NATTCH = 88;
export const SHM_RDONLY = 0o10000;
export const SHM_EXEC = 0o100000;
export const SHM_HUGETLB = 0o4000;
/** Of a mode: removed, and gone when nobody has it attached any more. */
export const SHM_DEST = 0o1000;
/** Of a mode: its pages are locked. */
export const SHM_LOCKED = 0o2000;
/** Of shmctl. */
export const SHM_LOCK = 11;

export const SEMID_DS_SIZE = 104;
/** When the last operation was, 0 for never. */
export const SEM_OTIME = 48;
export const SEM_NSEMS = 80;
export const GETALL = 13;
export const SETALL = 17;

export const MSQID_DS_SIZE = 120;
export const MSG_QNUM = 80;
export const MSG_QBYTES = 88;
/** msgrcv: copy the message at an index (CONFIG_CHECKPOINT_RESTORE). */
export const MSG_COPY = 0o40000;
/** Flag of an operation of semop(2). */
export const SEM_UNDO = 0x1000;
