// IPsec by netlink: include/uapi/linux/xfrm.h.

export const NETLINK_XFRM = 6;

export const XFRM_MSG_GETSA = 0x12;
export const XFRM_MSG_NEWPOLICY = 0x13;
export const XFRM_MSG_GETPOLICY = 0x15;

/** struct xfrm_usersa_id, xfrm_userpolicy_id, xfrm_userpolicy_info. */
export const USERSA_ID_SIZE = 24;
export const USERPOLICY_ID_SIZE = 64;
export const USERPOLICY_INFO_SIZE = 168;
/** Offsets in struct xfrm_userpolicy_info: curlft, dir. */
export const POLICY_CURRENT = 120;
export const LIFETIME_SIZE = 32;
export const POLICY_DIRECTION = 160;

/** The directions in, out and forward are below this. */
export const XFRM_POLICY_MAX = 3;

export const XFRMA_TMPL = 5;
export const XFRMA_SEC_CTX = 8;
export const XFRMA_POLICY_TYPE = 16;
export const XFRMA_MARK = 21;
export const XFRMA_IF_ID = 31;
