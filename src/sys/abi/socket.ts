// Sockets: include/linux/socket.h, include/uapi/asm-generic/socket.h, include/uapi/linux/{un,filter,unix_diag}.h,
// include/net/{tcp_states,sock}.h.

export const AF_UNSPEC = 0;
export const AF_UNIX = 1;
export const AF_INET = 2;
export const AF_BRIDGE = 7;
export const AF_INET6 = 10;
export const AF_NETLINK = 16;
export const AF_PACKET = 17;

export const SOCK_STREAM = 1;
export const SOCK_DGRAM = 2;
export const SOCK_RAW = 3;
export const SOCK_SEQPACKET = 5;
export const SOCK_NONBLOCK = 0o4000;
export const SOCK_CLOEXEC = 0o2000000;

export const SOL_SOCKET = 1;
export const SO_DEBUG = 1;
export const SO_REUSEADDR = 2;
export const SO_TYPE = 3;
export const SO_ERROR = 4;
export const SO_DONTROUTE = 5;
export const SO_BROADCAST = 6;
export const SO_SNDBUF = 7;
export const SO_RCVBUF = 8;
export const SO_KEEPALIVE = 9;
export const SO_OOBINLINE = 10;
export const SO_NO_CHECK = 11;
export const SO_PRIORITY = 12;
export const SO_LINGER = 13;
export const SO_REUSEPORT = 15;
export const SO_PASSCRED = 16;
export const SO_PEERCRED = 17;
export const SO_RCVLOWAT = 18;
/** Timeouts as struct timeval with 64-bit words, which is what these numbers mean on 64-bit systems. */
export const SO_RCVTIMEO = 20;
export const SO_SNDTIMEO = 21;
export const SO_BINDTODEVICE = 25;
export const SO_ATTACH_FILTER = 26;
export const SO_GET_FILTER = 26;
export const SO_PEERNAME = 28;
export const SO_TIMESTAMP = 29;
export const SO_ACCEPTCONN = 30;
export const SO_SNDBUFFORCE = 32;
export const SO_RCVBUFFORCE = 33;
export const SO_PASSSEC = 34;
export const SO_TIMESTAMPNS = 35;
export const SO_MARK = 36;
export const SO_NETNS_COOKIE = 71;
export const SO_TIMESTAMPING = 37;
export const SO_PROTOCOL = 38;
export const SO_DOMAIN = 39;
export const SO_RXQ_OVFL = 40;
export const SO_PEEK_OFF = 42;
export const SO_LOCK_FILTER = 44;
export const SO_BUSY_POLL = 46;
export const SO_MAX_PACING_RATE = 47;
export const SO_WIFI_STATUS = 41;
export const SO_NOFCS = 43;
export const SO_SELECT_ERR_QUEUE = 45;
export const SO_INCOMING_CPU = 49;
export const SO_MEMINFO = 55;
export const SO_ZEROCOPY = 60;
export const SO_TXTIME = 61;
export const SO_TIMESTAMP_NEW = 63;
export const SO_TIMESTAMPNS_NEW = 64;
export const SO_TIMESTAMPING_NEW = 65;
export const SO_PREFER_BUSY_POLL = 69;
export const SO_RESERVE_MEM = 73;
export const SO_TXREHASH = 74;
export const SO_RCVMARK = 75;
export const SO_PASSPIDFD = 76;
export const SO_RCVPRIORITY = 82;
export const SO_PASSRIGHTS = 83;
export const SO_BUF_LOCK = 72;

/** Words of SO_MEMINFO. */
export const SK_MEMINFO_OPTMEM = 6;

export const MSG_OOB = 0x1;
export const MSG_PEEK = 0x2;
export const MSG_CTRUNC = 0x8;
export const MSG_TRUNC = 0x20;
export const MSG_DONTWAIT = 0x40;
export const MSG_NOSIGNAL = 0x4000;
export const MSG_CMSG_CLOEXEC = 0x40000000;

export const SCM_RIGHTS = 1;
export const SCM_CREDENTIALS = 2;
export const SCM_SECURITY = 3;
export const SCM_PIDFD = 4;
/** The most descriptors in one message. */
export const SCM_MAX_FD = 253;

export const SHUT_RD = 0;
export const SHUT_WR = 1;
export const SHUT_RDWR = 2;

/** Values of sk_state that all families borrow from TCP. */
export const TCP_ESTABLISHED = 1;
export const TCP_CLOSE = 7;
export const TCP_LISTEN = 10;

/** struct sockaddr_un: the family, then at most this many bytes of name. */
export const UNIX_PATH_MAX = 108;
/** ioctl of a bound unix socket: an O_PATH descriptor of its file. */
export const SIOCUNIXFILE = 0x89e0;
/** IFNAMSIZ: the longest name of a network device, with its zero. */
export const IFNAMSIZ = 16;
