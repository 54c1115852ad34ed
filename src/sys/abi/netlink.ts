// Netlink and socket diagnosis: include/uapi/linux/{netlink,sock_diag,unix_diag,inet_diag}.h.

export const NETLINK_ROUTE = 0;
export const NETLINK_SOCK_DIAG = 4;

export const NLMSG_NOOP = 1;
export const NLMSG_ERROR = 2;
export const NLMSG_DONE = 3;
export const NLM_F_REQUEST = 0x1;
export const NLM_F_ACK = 0x4;
export const NLM_F_DUMP_INTR = 0x10;
export const NLM_F_DUMP = 0x300;
export const NLA_TYPE_MASK = 0x3fff;

export const SOCK_DIAG_BY_FAMILY = 20;

/** struct unix_diag_req, struct unix_diag_msg. */
export const UNIX_DIAG_REQ_SIZE = 24;
export const UNIX_DIAG_MSG_SIZE = 16;
export const UDIAG_SHOW_NAME = 0x1;
export const UDIAG_SHOW_VFS = 0x2;
export const UDIAG_SHOW_PEER = 0x4;
export const UDIAG_SHOW_ICONS = 0x8;
export const UDIAG_SHOW_RQLEN = 0x10;
export const UNIX_DIAG_NAME = 0;
export const UNIX_DIAG_VFS = 1;
export const UNIX_DIAG_PEER = 2;
export const UNIX_DIAG_ICONS = 3;
export const UNIX_DIAG_RQLEN = 4;
export const UNIX_DIAG_SHUTDOWN = 6;

/** struct inet_diag_req_v2, struct inet_diag_msg. */
export const INET_DIAG_REQ_SIZE = 56;
export const INET_DIAG_MSG_SIZE = 72;
export const INET_DIAG_INFO = 2;
export const INET_DIAG_SHUTDOWN = 8;
export const INET_DIAG_SKV6ONLY = 11;
export const INET_DIAG_MD5SIG = 18;
/** struct tcp_diag_md5sig: family, prefix, length of the key, 16 bytes of address, 80 of key. */
export const TCP_DIAG_MD5SIG_SIZE = 100;

export const NETLINK_NETFILTER = 12;
export const NLM_F_REPLACE = 0x100;
export const NLM_F_EXCL = 0x200;
export const NLM_F_CREATE = 0x400;
export const NLM_F_APPEND = 0x800;
export const NLA_F_NESTED = 0x8000;

/** Options of netlink sockets. */
export const SOL_NETLINK = 270;
export const NETLINK_ADD_MEMBERSHIP = 1;
export const NETLINK_PKTINFO = 3;
export const NETLINK_BROADCAST_ERROR = 4;
export const NETLINK_NO_ENOBUFS = 5;
export const NETLINK_LISTEN_ALL_NSID = 8;
export const NETLINK_LIST_MEMBERSHIPS = 9;
export const NETLINK_CAP_ACK = 10;
export const NETLINK_EXT_ACK = 11;
export const NETLINK_GET_STRICT_CHK = 12;
export const SOCKADDR_NL_SIZE = 12;
/** sk_state. */
export const NETLINK_UNCONNECTED = 0;
export const NETLINK_CONNECTED = 1;

/** struct packet_diag_req, packet_diag_msg, packet_diag_mclist: include/uapi/linux/packet_diag.h. */
export const PACKET_DIAG_REQ_SIZE = 20;
export const PACKET_DIAG_MSG_SIZE = 16;
export const PACKET_DIAG_MCLIST_SIZE = 44;
export const PACKET_SHOW_INFO = 0x1;
export const PACKET_SHOW_MCLIST = 0x2;
export const PACKET_SHOW_RING_CFG = 0x4;
export const PACKET_SHOW_FANOUT = 0x8;
export const PACKET_DIAG_INFO = 0;
export const PACKET_DIAG_MCLIST = 1;
export const PACKET_DIAG_RX_RING = 2;
export const PACKET_DIAG_TX_RING = 3;
export const PACKET_DIAG_FANOUT = 4;
