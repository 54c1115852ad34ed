// The automounter's file system: include/uapi/linux/auto_fs.h and auto_dev-ioctl.h, Documentation/filesystems/autofs*.rst.

/** What a mount makes of its directory: itself the trigger, a directory of triggers, a trigger that another one has made. */
export const AUTOFS_MODES = ["direct", "indirect", "offset"] as const;

/** ioctls of the root directory. */
export const AUTOFS_IOC_CATATONIC = 0x9362;
export const AUTOFS_IOC_SETTIMEOUT = 0xc0089364;

/** … and of /dev/autofs, with a struct autofs_dev_ioctl: two numbers of a version, size, descriptor of the root, argument. */
export const AUTOFS_DEVICE = "/dev/autofs";
export const AUTOFS_DEV_IOCTL_SETPIPEFD = 0xc0189378;
export const AUTOFS_DEV_IOCTL_SIZE = 24;
export const AUTOFS_DEV_IOCTL_VERSION_MAJOR = 1;
export const AUTOFS_DEV_IOCTL_FD = 12;
export const AUTOFS_DEV_IOCTL_ARGUMENT = 16;
