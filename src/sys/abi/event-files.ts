// Files that stand for events: include/uapi/linux/{eventfd,eventpoll,timerfd,pidfd,inotify,kcmp}.h, include/linux/exportfs.h.

export const EFD_SEMAPHORE = 1;

export const EPOLL_CTL_ADD = 1;
/** struct epoll_event, packed on x86-64: u32 events, u64 data. */
export const EPOLL_EVENT_SIZE = 12;
/** ioctl(2) on an epoll, struct epoll_params: 8 bytes (Linux 6.9). */
export const EPIOCSPARAMS = 0x4008_8a01;
export const EPIOCGPARAMS = 0x8008_8a02;
export const EPOLL_PARAMS_SIZE = 8;
export const EPOLLERR = 0x8;
export const EPOLLHUP = 0x10;
export const EPOLLONESHOT = 0x40000000;
/** EPOLLIN, EPOLLPRI, EPOLLOUT, EPOLLRDNORM, EPOLLRDBAND, EPOLLWRNORM, EPOLLWRBAND, EPOLLMSG and EPOLLRDHUP. */
export const EPOLL_EVENTS = 0x27c7;
export const EPOLL_CTL_MOD = 3;
/** Bits that say how to report, not what: with no other bit set, a target is switched off. */
export const EP_PRIVATE_BITS = 0xf0000000;

export const KCMP_EPOLL_TFD = 7;

export const TFD_TIMER_ABSTIME = 1;
export const TFD_TIMER_CANCEL_ON_SET = 2;
/** _IOW('T', 0, u64): sets the expirations not read yet (CONFIG_CHECKPOINT_RESTORE). */
export const TFD_IOC_SET_TICKS = 0x40085400;
/** struct itimerspec: interval and value, each seconds and nanoseconds. */
export const ITIMERSPEC_SIZE = 32;
export const CLOCK_REALTIME = 0;
export const CLOCK_MONOTONIC = 1;
export const CLOCK_MONOTONIC_COARSE = 6;
export const CLOCK_BOOTTIME = 7;
export const CLOCK_REALTIME_ALARM = 8;

/** Of a pidfd's open flags (it is O_EXCL): it stands for a thread. */
export const PIDFD_THREAD = 0o200;

export const IN_ALL_EVENTS = 0xfff;
export const IN_DONT_FOLLOW = 0x02000000;
export const IN_EXCL_UNLINK = 0x04000000;
export const IN_ONESHOT = 0x80000000;
export const IN_UNMOUNT = 0x2000;
/** _IOW('I', 0, s32), its argument is a value: the number of the next watch (CONFIG_CHECKPOINT_RESTORE). */
export const INOTIFY_IOC_SETNEXTWD = 0x40044900;

export const FAN_MARK_ADD = 1;
export const FAN_MARK_DONT_FOLLOW = 4;
export const FAN_MARK_MOUNT = 0x10;
export const FAN_MARK_IGNORED_MASK = 0x20;
export const FAN_MARK_FILESYSTEM = 0x100;
export const FAN_MARK_IGNORE = 0x400;
/** FAN_OPEN_PERM, FAN_ACCESS_PERM, FAN_OPEN_EXEC_PERM, FAN_PRE_ACCESS. */
export const FAN_PERMISSION_EVENTS = 0x17_0000;

/** struct file_handle before the handle's bytes: u32 size, i32 type. */
export const FILE_HANDLE_HEAD = 8;
/** MAX_HANDLE_SZ: bytes of a handle. */
export const MAX_HANDLE_SZ = 128;
