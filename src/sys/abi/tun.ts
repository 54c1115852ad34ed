// tun and tap devices: include/uapi/linux/if_tun.h, include/uapi/linux/sockios.h.

export const TUNSETIFF = 0x400454ca;
export const TUNSETPERSIST = 0x400454cb;
export const TUNSETOWNER = 0x400454cc;
export const TUNSETGROUP = 0x400454ce;
export const TUNGETIFF = 0x800454d2;
export const TUNGETSNDBUF = 0x800454d3;
export const TUNSETSNDBUF = 0x400454d4;
export const TUNGETVNETHDRSZ = 0x800454d7;
export const TUNSETVNETHDRSZ = 0x400454d8;
export const TUNSETQUEUE = 0x400454d9;
export const TUNSETIFINDEX = 0x400454da;
export const TUNGETFILTER = 0x801054db;
/** The network namespace of a socket or tun file, as a descriptor. */
export const SIOCGSKNS = 0x894c;

/** struct ifreq: the name, then the flags. */
export const IFREQ_SIZE = 40;
export const IFREQ_FLAGS = 16;

export const IFF_TUN = 0x1;
export const IFF_TAP = 0x2;
export const IFF_NAPI = 0x10;
export const IFF_NAPI_FRAGS = 0x20;
export const IFF_MULTI_QUEUE = 0x100;
export const IFF_DETACH_QUEUE = 0x400;
export const IFF_PERSIST = 0x800;
/** Of TUNSETIFF and sysfs; TUNGETIFF uses the same bit for a file without filter. */
export const IFF_NO_PI = 0x1000;
export const IFF_VNET_HDR = 0x4000;

export const IFLA_TUN_OWNER = 1;
export const IFLA_TUN_GROUP = 2;
export const IFLA_TUN_TYPE = 3;
export const IFLA_TUN_PI = 4;
export const IFLA_TUN_VNET_HDR = 5;
export const IFLA_TUN_PERSIST = 6;
export const IFLA_TUN_MULTI_QUEUE = 7;
