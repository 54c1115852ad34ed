// Internet sockets: include/uapi/linux/{in,in6,tcp,udp,sockios}.h, include/net/tcp_states.h.

export const IPPROTO_IP = 0;
export const IPPROTO_ICMP = 1;
export const IPPROTO_TCP = 6;
export const IPPROTO_UDP = 17;
export const IPPROTO_IPV6 = 41;
export const IPPROTO_ICMPV6 = 58;
export const IPPROTO_UDPLITE = 136;
export const IPPROTO_RAW = 255;
/** Multipath TCP; not a protocol on the wire. */
export const IPPROTO_MPTCP = 262;

/** Levels of getsockopt. */
export const SOL_IP = 0;
export const SOL_TCP = 6;
export const SOL_UDP = 17;
export const SOL_IPV6 = 41;
export const SOL_ICMPV6 = 58;
export const SOL_UDPLITE = 136;
export const SOL_RAW = 255;

export const IP_TOS = 1;
export const IP_TTL = 2;
export const IP_HDRINCL = 3;
export const IP_OPTIONS = 4;
export const IP_ROUTER_ALERT = 5;
export const IP_RECVOPTS = 6;
export const IP_RETOPTS = 7;
export const IP_PKTINFO = 8;
export const IP_MTU_DISCOVER = 10;
export const IP_RECVERR = 11;
export const IP_RECVTTL = 12;
export const IP_RECVTOS = 13;
export const IP_FREEBIND = 15;
export const IP_PASSSEC = 18;
export const IP_TRANSPARENT = 19;
export const IP_RECVORIGDSTADDR = 20;
export const IP_MINTTL = 21;
export const IP_NODEFRAG = 22;
export const IP_CHECKSUM = 23;
export const IP_BIND_ADDRESS_NO_PORT = 24;
export const IP_RECVFRAGSIZE = 25;
export const IP_RECVERR_RFC4884 = 26;
export const IP_MULTICAST_IF = 32;
export const IP_MULTICAST_TTL = 33;
export const IP_MULTICAST_LOOP = 34;
export const IP_MULTICAST_ALL = 49;
export const IP_UNICAST_IF = 50;
export const IP_LOCAL_PORT_RANGE = 51;
export const ICMP_FILTER = 1;

/** Both levels, with struct group_req and struct group_filter. */
export const MCAST_JOIN_GROUP = 42;
export const MCAST_MSFILTER = 48;
export const MCAST_EXCLUDE = 0;
export const MCAST_INCLUDE = 1;

export const ICMPV6_FILTER = 1;
export const IPV6_2292PKTINFO = 2;
export const IPV6_2292HOPOPTS = 3;
export const IPV6_2292DSTOPTS = 4;
export const IPV6_2292RTHDR = 5;
export const IPV6_CHECKSUM = 7;
export const IPV6_2292HOPLIMIT = 8;
export const IPV6_FLOWINFO = 11;
export const IPV6_UNICAST_HOPS = 16;
export const IPV6_MULTICAST_IF = 17;
export const IPV6_MULTICAST_HOPS = 18;
export const IPV6_MULTICAST_LOOP = 19;
export const IPV6_MTU_DISCOVER = 23;
export const IPV6_RECVERR = 25;
export const IPV6_V6ONLY = 26;
export const IPV6_MULTICAST_ALL = 29;
export const IPV6_ROUTER_ALERT_ISOLATE = 30;
export const IPV6_RECVERR_RFC4884 = 31;
export const IPV6_FLOWINFO_SEND = 33;
export const IPV6_AUTOFLOWLABEL = 70;
export const IPV6_ADDR_PREFERENCES = 72;
export const IPV6_MINHOPCOUNT = 73;
export const IPV6_RECVFRAGSIZE = 77;
export const IPV6_HDRINCL = 36;
export const IPV6_RECVPKTINFO = 49;
export const IPV6_RECVHOPLIMIT = 51;
export const IPV6_RECVHOPOPTS = 53;
export const IPV6_HOPOPTS = 54;
export const IPV6_RECVRTHDR = 56;
export const IPV6_RECVDSTOPTS = 58;
export const IPV6_RECVPATHMTU = 60;
export const IPV6_RTHDRDSTOPTS = 55;
export const IPV6_RTHDR = 57;
export const IPV6_DSTOPTS = 59;
export const IPV6_RECVTCLASS = 66;
export const IPV6_TCLASS = 67;
export const IPV6_DONTFRAG = 62;
export const IPV6_RECVORIGDSTADDR = 74;
export const IPV6_TRANSPARENT = 75;
export const IPV6_UNICAST_IF = 76;
export const IPV6_FREEBIND = 78;

export const TCP_NODELAY = 1;
export const TCP_MAXSEG = 2;
export const TCP_CORK = 3;
export const TCP_KEEPIDLE = 4;
export const TCP_KEEPINTVL = 5;
export const TCP_KEEPCNT = 6;
export const TCP_SYNCNT = 7;
export const TCP_LINGER2 = 8;
export const TCP_DEFER_ACCEPT = 9;
export const TCP_WINDOW_CLAMP = 10;
export const TCP_INFO = 11;
export const TCP_CONGESTION = 13;
export const TCP_THIN_LINEAR_TIMEOUTS = 16;
export const TCP_USER_TIMEOUT = 18;
export const TCP_REPAIR = 19;
export const TCP_REPAIR_QUEUE = 20;
export const TCP_QUEUE_SEQ = 21;
export const TCP_REPAIR_OPTIONS = 22;
export const TCP_FASTOPEN = 23;
export const TCP_TIMESTAMP = 24;
export const TCP_NOTSENT_LOWAT = 25;
export const TCP_SAVE_SYN = 27;
export const TCP_REPAIR_WINDOW = 29;
export const TCP_FASTOPEN_CONNECT = 30;
export const TCP_ULP = 31;
export const TCP_MD5SIG_EXT = 32;
export const TCP_FASTOPEN_KEY = 33;
export const TCP_FASTOPEN_NO_COOKIE = 34;
export const TCP_INQ = 36;
export const TCP_TX_DELAY = 37;
export const TCP_RTO_MAX_MS = 44;
export const TCP_RTO_MIN_US = 45;
export const TCP_DELACK_MAX_US = 46;

/** struct tcp_md5sig. */
export const TCP_MD5SIG_FLAG_PREFIX = 1;
export const TCP_MD5SIG_MAXKEYLEN = 80;

/** TCP_REPAIR: off with a window probe to the peer, on, off in silence. */
export const TCP_REPAIR_OFF = 0;
export const TCP_REPAIR_ON = 1;
export const TCP_REPAIR_OFF_NO_WP = -1;

/** TCP_REPAIR_QUEUE. */
export const TCP_NO_QUEUE = 0;
export const TCP_RECV_QUEUE = 1;
export const TCP_SEND_QUEUE = 2;

/** Codes in struct tcp_repair_opt: the option kinds of the protocol. */
export const TCPOPT_MAXSEG = 2;
export const TCPOPT_WINDOW = 3;
export const TCPOPT_SACK_PERMITTED = 4;
export const TCPOPT_TIMESTAMP = 8;

/** tcpi_options. */
export const TCPI_OPT_TIMESTAMPS = 1;
export const TCPI_OPT_SACK = 2;
export const TCPI_OPT_WSCALE = 4;

/** struct tcp_repair_window: snd_wl1, snd_wnd, max_window, rcv_wnd, rcv_wup. */
export const TCP_REPAIR_WINDOW_SIZE = 20;

export const TCP_ESTABLISHED = 1;
export const TCP_SYN_SENT = 2;
export const TCP_FIN_WAIT1 = 4;
export const TCP_FIN_WAIT2 = 5;
export const TCP_CLOSE = 7;
export const TCP_CLOSE_WAIT = 8;
export const TCP_LAST_ACK = 9;
export const TCP_LISTEN = 10;
export const TCP_CLOSING = 11;

export const UDP_CORK = 1;
export const UDP_ENCAP = 100;
export const UDP_NO_CHECK6_TX = 101;
export const UDP_NO_CHECK6_RX = 102;
export const UDP_SEGMENT = 103;
export const UDP_GRO = 104;
export const UDPLITE_SEND_CSCOV = 10;
export const UDPLITE_RECV_CSCOV = 11;

/** Bytes in the queues of a TCP socket: unread, not acknowledged, not sent. */
export const SIOCINQ = 0x541b;
export const SIOCOUTQ = 0x5411;
export const SIOCOUTQNSD = 0x894b;
/** Name of an interface by its index. */
export const SIOCGIFNAME = 0x8910;
/** Index of an interface by its name. */
export const SIOCGIFINDEX = 0x8933;
