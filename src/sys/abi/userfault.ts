// userfaultfd: include/uapi/linux/userfaultfd.h. Missing pages are filled by whoever holds the descriptor.

export const UFFD_API = 0xaa;
/** A flag of userfaultfd(2). */
export const UFFD_USER_MODE_ONLY = 1;
export const UFFD_FEATURE_PAGEFAULT_FLAG_WP = 1 << 0;
export const UFFD_FEATURE_EVENT_FORK = 1 << 1;
export const UFFD_FEATURE_EVENT_REMAP = 1 << 2;
export const UFFD_FEATURE_EVENT_REMOVE = 1 << 3;
export const UFFD_FEATURE_EVENT_UNMAP = 1 << 6;

/** Since Linux 6.4 and 6.7: write protection of pages that are not there, and writes that nobody has to allow. */
export const UFFD_FEATURE_WP_UNPOPULATED = 1 << 13;
export const UFFD_FEATURE_WP_ASYNC = 1 << 15;

/** Since Linux 6.1: who has this device open may make userfaultfds, whoever he is. */
export const USERFAULTFD_DEVICE = "/dev/userfaultfd";
/** _IO(0xaa, 0); its argument are the flags of userfaultfd(2). */
export const USERFAULTFD_IOC_NEW = 0xaa00;

export const UFFDIO_API = 0xc018aa3f;
export const UFFDIO_REGISTER = 0xc020aa00;
export const UFFDIO_UNREGISTER = 0x8010aa01;
export const UFFDIO_WAKE = 0x8010aa02;
export const UFFDIO_COPY = 0xc028aa03;
export const UFFDIO_ZEROPAGE = 0xc020aa04;

export const UFFDIO_REGISTER_MODE_MISSING = 1;
export const UFFDIO_REGISTER_MODE_WP = 2;

/** struct uffdio_api: api, features, ioctls. */
export const UFFDIO_API_SIZE = 24;
/** struct uffdio_register: start, length, mode, ioctls. */
export const UFFDIO_REGISTER_SIZE = 32;
/** struct uffdio_copy: destination, source, length, mode, and what was copied. */
export const UFFDIO_COPY_SIZE = 40;
/** struct uffdio_zeropage: start, length, mode, and what was filled. */
export const UFFDIO_ZEROPAGE_SIZE = 32;

/** struct uffd_msg: event in the first byte, arguments from byte 8 on. */
export const UFFD_MSG_SIZE = 32;
export const UFFD_EVENT_PAGEFAULT = 0x12;
export const UFFD_EVENT_FORK = 0x13;
export const UFFD_EVENT_REMAP = 0x14;
export const UFFD_EVENT_REMOVE = 0x15;
export const UFFD_EVENT_UNMAP = 0x16;
