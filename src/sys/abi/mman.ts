// Memory mapping constants: include/uapi/asm-generic/mman-common.h, include/uapi/linux/mman.h.

export const PROT_NONE = 0;
export const PROT_READ = 1;
export const PROT_WRITE = 2;
export const PROT_EXEC = 4;

export const MAP_SHARED = 0x01;
export const MAP_PRIVATE = 0x02;
export const MAP_DROPPABLE = 0x08;
export const MAP_FIXED = 0x10;
export const MAP_ANONYMOUS = 0x20;
export const MAP_GROWSDOWN = 0x100;
export const MAP_LOCKED = 0x2000;
export const MAP_NORESERVE = 0x4000;
/** Has the kernel map all pages at once. */
export const MAP_POPULATE = 0x8000;
export const MAP_HUGETLB = 0x40000;
export const MAP_FIXED_NOREPLACE = 0x100000;

export const MADV_RANDOM = 1;
export const MADV_SEQUENTIAL = 2;
export const MADV_DONTFORK = 10;
export const MADV_MERGEABLE = 12;
export const MADV_UNMERGEABLE = 13;
export const MADV_DONTNEED = 4;
export const MADV_HUGEPAGE = 14;
export const MADV_NOHUGEPAGE = 15;
export const MADV_DONTDUMP = 16;
export const MADV_WIPEONFORK = 18;
export const MADV_POPULATE_WRITE = 23;
export const MADV_GUARD_INSTALL = 102;

export const MLOCK_ONFAULT = 1;
export const MCL_FUTURE = 2;
export const MCL_ONFAULT = 4;

export const MREMAP_MAYMOVE = 1;
export const MREMAP_FIXED = 2;

export const MFD_CLOEXEC = 1;
export const MFD_ALLOW_SEALING = 2;
export const MFD_HUGETLB = 4;
export const MFD_NOEXEC_SEAL = 8;
export const MFD_EXEC = 0x10;

export const PAGE_SIZE = 4096;
/** End of user space with four-level page tables; programs with wider addresses are refused. */
export const TASK_SIZE = 0x7ffffffff000;

/** PAGEMAP_SCAN: include/uapi/linux/fs.h (since Linux 6.7). */
export const PAGEMAP_SCAN = 0xc0606610;
/** Protects what it finds against writes, in memory that a userfaultfd watches with UFFD_FEATURE_WP_ASYNC. */
export const PM_SCAN_WP_MATCHING = 1;
export const PAGE_IS_WPALLOWED = 1 << 0;
export const PAGE_IS_WRITTEN = 1 << 1;
export const PAGE_IS_FILE = 1 << 2;
export const PAGE_IS_PRESENT = 1 << 3;
export const PAGE_IS_SWAPPED = 1 << 4;
export const PAGE_IS_PFNZERO = 1 << 5;
export const PAGE_IS_HUGE = 1 << 6;
/** Since Linux 6.15. */
export const PAGE_IS_GUARD = 1 << 8;
