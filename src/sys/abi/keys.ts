// Keys in the kernel: include/uapi/linux/keyctl.h.

export const KEYCTL_GET_KEYRING_ID = 0;
export const KEYCTL_READ = 11;
export const KEY_SPEC_THREAD_KEYRING = -1;
export const KEY_SPEC_PROCESS_KEYRING = -2;
export const KEY_SPEC_SESSION_KEYRING = -3;
export const KEY_SPEC_USER_SESSION_KEYRING = -5;
