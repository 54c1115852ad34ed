// Options of internet sockets: those that CRIU's images have fields for, and all others whose value is not that of a fresh
// socket, as (level, name, value) in a field of our own. See ip(7), ipv6(7), tcp(7), udp(7); format.md section 11, INETSK.

import type {
  InetSkEntry,
  IpOptsEntry,
  RepriseSocketOption,
  TcpOptsEntry,
} from "../../images/schema/messages.generated.ts";
import { log } from "../../log.ts";
import * as inet from "../../sys/abi/inet.ts";
import * as so from "../../sys/abi/socket.ts";
import { AF_INET, AF_INET6, SOCK_RAW, SOCK_STREAM } from "../../sys/abi/socket.ts";
import { errnoName } from "../../sys/errno.ts";
import { trySyscall } from "../../sys/ffi.ts";
import { getOption } from "../../sys/socket.ts";
import { socketOptions, type SocketKind } from "./further-options.ts";
import type { SocketOptionPlace } from "./option-question.ts";

/** The words of struct icmp_filter and icmp6_filter. */
const ICMP_FILTER_SIZE = 4;
const ICMP6_FILTER_SIZE = 32;

/** ip_opts of a socket. What a kernel or protocol does not have is absent. */
export function readIpOptions(fd: number, kind: SocketKind): IpOptsEntry {
  const flag = (level: number, name: number): boolean => (read(fd, level, name) ?? 0) !== 0;
  const six = kind.family === AF_INET6;
  const freebind = six
    ? (read(fd, inet.SOL_IPV6, inet.IPV6_FREEBIND) ?? 0) !== 0
    : flag(inet.SOL_IP, inet.IP_FREEBIND);
  const pktinfo = six
    ? flag(inet.SOL_IPV6, inet.IPV6_RECVPKTINFO)
    : flag(inet.SOL_IP, inet.IP_PKTINFO);
  const tos = six ? 0 : (read(fd, inet.SOL_IP, inet.IP_TOS) ?? 0);
  const ttl = six ? 0 : (read(fd, inet.SOL_IP, inet.IP_TTL) ?? 0);
  return {
    ...(freebind ? { freebind } : {}),
    ...(kind.type === SOCK_RAW ? { raw: readRawOptions(fd, kind) } : {}),
    ...(pktinfo ? { pktinfo } : {}),
    ...(tos === 0 ? {} : { tos }),
    ...(ttl === 0 ? {} : { ttl }),
  };
}

/** tcp_opts of a socket: what is not 0. */
export function readTcpOptions(fd: number): TcpOptsEntry {
  const number = (name: number): number => read(fd, inet.SOL_TCP, name) ?? 0;
  const keep = {
    keepcnt: number(inet.TCP_KEEPCNT),
    keepidle: number(inet.TCP_KEEPIDLE),
    keepintvl: number(inet.TCP_KEEPINTVL),
  };
  return {
    ...(number(inet.TCP_CORK) === 0 ? {} : { cork: true }),
    ...(number(inet.TCP_NODELAY) === 0 ? {} : { nodelay: true }),
    ...Object.fromEntries(Object.entries(keep).filter(([, value]) => value !== 0)),
  };
}

/** Sets the options that must be there before the socket gets an address. */
export function setEarlyOptions(fd: number, entry: InetSkEntry): void {
  const set = setter(fd, entry);
  if (entry.v6only === true) set(inet.SOL_IPV6, inet.IPV6_V6ONLY, 1);
  for (const { level, name, value } of entry.reprise?.options ?? []) {
    if (isEarly(level, name)) set(level, name, value);
  }
  // An IPv6 address that has just been given to an interface cannot be bound yet without it.
  if (entry.family === AF_INET6) set(inet.SOL_IPV6, inet.IPV6_FREEBIND, 1);
  else if (entry.ip_opts?.freebind === true) set(inet.SOL_IP, inet.IP_FREEBIND, 1);
}

/** Sets all other options of internet sockets. One that this kernel does not take is told in the log. */
export function setOptions(fd: number, entry: InetSkEntry): void {
  const set = setter(fd, entry);
  const { ip_opts: ip = {}, tcp_opts: tcp = {} } = entry;
  if (entry.family === AF_INET6) {
    if (ip.freebind !== true) set(inet.SOL_IPV6, inet.IPV6_FREEBIND, 0);
    if (ip.pktinfo === true) set(inet.SOL_IPV6, inet.IPV6_RECVPKTINFO, 1);
  } else {
    if (ip.pktinfo === true) set(inet.SOL_IP, inet.IP_PKTINFO, 1);
    if (ip.tos !== undefined) set(inet.SOL_IP, inet.IP_TOS, ip.tos);
    if (ip.ttl !== undefined) set(inet.SOL_IP, inet.IP_TTL, ip.ttl);
  }
  setRawOptions(entry, set);
  if (entry.proto === inet.IPPROTO_TCP && entry.type !== SOCK_RAW) {
    const { keepcnt, keepidle, keepintvl, nodelay, cork } = tcp;
    if (nodelay === true) set(inet.SOL_TCP, inet.TCP_NODELAY, 1);
    if (cork === true) set(inet.SOL_TCP, inet.TCP_CORK, 1);
    if (keepcnt !== undefined) set(inet.SOL_TCP, inet.TCP_KEEPCNT, keepcnt);
    if (keepidle !== undefined) set(inet.SOL_TCP, inet.TCP_KEEPIDLE, keepidle);
    if (keepintvl !== undefined) set(inet.SOL_TCP, inet.TCP_KEEPINTVL, keepintvl);
  }
  for (const { level, name, value } of entry.reprise?.options ?? []) {
    if (!isEarly(level, name)) set(level, name, value);
  }
  // IP_TOS sets it, too.
  if (hasServiceType(entry)) set(so.SOL_SOCKET, so.SO_PRIORITY, entry.opts.so_priority ?? 0);
}

function hasServiceType({ ip_opts, reprise }: InetSkEntry): boolean {
  if (ip_opts?.tos !== undefined) return true;
  return (
    reprise?.options.some(({ level, name }) => level === inet.SOL_IP && name === inet.IP_TOS) ===
    true
  );
}

type Set = (level: number, name: number, value: number | Uint8Array) => void;

function setter(fd: number, { id }: InetSkEntry): Set {
  return (level, name, value) => {
    const bytes = Buffer.alloc(4);
    if (typeof value === "number") bytes.writeInt32LE(value | 0);
    const content = typeof value === "number" ? bytes : value;
    const result = trySyscall("setsockopt", fd, level, name, content, content.length);
    if (result < 0) {
      log.warn(`socket ${id}: option ${level}:${name} is lost: setsockopt: ${errnoName(-result)}`);
    }
  };
}

function read(fd: number, level: number, name: number): number | undefined {
  const value = getOption(fd, { level, name, size: 4 });
  if (typeof value === "number") return undefined;
  // Some options of IP answer with a single byte.
  return value.length < 4 ? (value[0] ?? 0) : value.readInt32LE(0);
}

function readRawOptions(
  fd: number,
  { family, proto }: SocketKind,
): NonNullable<IpOptsEntry["raw"]> {
  const six = family === AF_INET6;
  const hdrincl =
    read(fd, six ? inet.SOL_IPV6 : inet.SOL_IP, six ? inet.IPV6_HDRINCL : inet.IP_HDRINCL) ?? 0;
  const nodefrag = six ? 0 : (read(fd, inet.SOL_IP, inet.IP_NODEFRAG) ?? 0);
  const filter = icmpFilterOption(family, proto);
  const words = filter === undefined ? -1 : getOption(fd, filter);
  return {
    ...(hdrincl === 0 ? {} : { hdrincl: true }),
    ...(nodefrag === 0 ? {} : { nodefrag: true }),
    icmpv_filter:
      typeof words === "number"
        ? []
        : Array.from({ length: words.length / 4 }, (_, at) => words.readUInt32LE(at * 4)),
  };
}

function setRawOptions(entry: InetSkEntry, set: Set): void {
  const { family, proto } = entry;
  const raw = entry.ip_opts?.raw;
  if (raw === undefined) return;
  const six = family === AF_INET6;
  const filter = icmpFilterOption(family, proto);
  if (filter !== undefined && raw.icmpv_filter.length > 0) {
    const words = Buffer.alloc(raw.icmpv_filter.length * 4);
    raw.icmpv_filter.forEach((word, at) => words.writeUInt32LE(word, at * 4));
    set(filter.level, filter.name, words);
  }
  if (raw.nodefrag === true) set(inet.SOL_IP, inet.IP_NODEFRAG, 1);
  // A socket of IPPROTO_RAW begins with it.
  if (raw.hdrincl === true || proto === inet.IPPROTO_RAW) {
    const name = six ? inet.IPV6_HDRINCL : inet.IP_HDRINCL;
    set(six ? inet.SOL_IPV6 : inet.SOL_IP, name, raw.hdrincl === true ? 1 : 0);
  }
}

function icmpFilterOption(family: number, proto: number): SocketOptionPlace | undefined {
  if (family === AF_INET && proto === inet.IPPROTO_ICMP) {
    return { level: inet.SOL_RAW, name: inet.ICMP_FILTER, size: ICMP_FILTER_SIZE };
  }
  if (family === AF_INET6 && proto === inet.IPPROTO_ICMPV6) {
    return { level: inet.SOL_ICMPV6, name: inet.ICMPV6_FILTER, size: ICMP6_FILTER_SIZE };
  }
  return undefined;
}

const IP_OPTIONS = [
  inet.IP_RECVOPTS,
  inet.IP_RETOPTS,
  inet.IP_MTU_DISCOVER,
  inet.IP_RECVERR,
  inet.IP_RECVTTL,
  inet.IP_RECVTOS,
  inet.IP_PASSSEC,
  inet.IP_TRANSPARENT,
  inet.IP_RECVORIGDSTADDR,
  inet.IP_MINTTL,
  inet.IP_CHECKSUM,
  inet.IP_BIND_ADDRESS_NO_PORT,
  inet.IP_RECVFRAGSIZE,
  inet.IP_RECVERR_RFC4884,
  inet.IP_UNICAST_IF,
  inet.IP_LOCAL_PORT_RANGE,
];

const IPV6_STICKY_OPTIONS: readonly number[] = [
  inet.IPV6_HOPOPTS,
  inet.IPV6_RTHDRDSTOPTS,
  inet.IPV6_RTHDR,
  inet.IPV6_DSTOPTS,
];

const IP_MULTICAST_OPTIONS = [inet.IP_MULTICAST_LOOP, inet.IP_MULTICAST_ALL];

/** Streams do not have them. */
const IP_SENDING_OPTIONS = [inet.IP_MULTICAST_IF, inet.IP_MULTICAST_TTL];

const IPV6_OPTIONS = [
  inet.IPV6_2292PKTINFO,
  inet.IPV6_2292HOPOPTS,
  inet.IPV6_2292DSTOPTS,
  inet.IPV6_2292RTHDR,
  inet.IPV6_2292HOPLIMIT,
  inet.IPV6_FLOWINFO,
  inet.IPV6_MULTICAST_LOOP,
  inet.IPV6_MULTICAST_ALL,
  inet.IPV6_ROUTER_ALERT_ISOLATE,
  inet.IPV6_RECVERR_RFC4884,
  inet.IPV6_FLOWINFO_SEND,
  inet.IPV6_RECVHOPOPTS,
  inet.IPV6_RECVRTHDR,
  inet.IPV6_RECVDSTOPTS,
  inet.IPV6_RECVPATHMTU,
  inet.IPV6_ADDR_PREFERENCES,
  inet.IPV6_MINHOPCOUNT,
  inet.IPV6_RECVFRAGSIZE,
  inet.IPV6_UNICAST_HOPS,
  inet.IPV6_MTU_DISCOVER,
  inet.IPV6_RECVERR,
  inet.IPV6_AUTOFLOWLABEL,
  inet.IPV6_RECVHOPLIMIT,
  inet.IPV6_RECVTCLASS,
  inet.IPV6_TCLASS,
  inet.IPV6_DONTFRAG,
  inet.IPV6_RECVORIGDSTADDR,
  inet.IPV6_TRANSPARENT,
  inet.IPV6_UNICAST_IF,
];

const IPV6_SENDING_OPTIONS = [inet.IPV6_MULTICAST_IF, inet.IPV6_MULTICAST_HOPS];

const TCP_OPTIONS = [
  // Of a connection, too: repair mode leaves one that goes with the largest buffers.
  inet.TCP_WINDOW_CLAMP,
  inet.TCP_SYNCNT,
  inet.TCP_LINGER2,
  inet.TCP_DEFER_ACCEPT,
  inet.TCP_THIN_LINEAR_TIMEOUTS,
  inet.TCP_USER_TIMEOUT,
  inet.TCP_NOTSENT_LOWAT,
  inet.TCP_SAVE_SYN,
  inet.TCP_INQ,
  inet.TCP_TX_DELAY,
  inet.TCP_RTO_MAX_MS,
  inet.TCP_RTO_MIN_US,
  inet.TCP_DELACK_MAX_US,
];

/** Of a connection they are negotiated, or can no longer be set. */
const TCP_OPTIONS_BEFORE = [
  inet.TCP_MAXSEG,
  inet.TCP_FASTOPEN,
  inet.TCP_FASTOPEN_CONNECT,
  inet.TCP_FASTOPEN_NO_COOKIE,
];

const UDP_OPTIONS = [
  inet.UDP_CORK,
  inet.UDP_ENCAP,
  inet.UDP_NO_CHECK6_TX,
  inet.UDP_NO_CHECK6_RX,
  inet.UDP_SEGMENT,
  inet.UDP_GRO,
];

/** Two keys of TCP_FASTOPEN_KEY_LENGTH. */
const FASTOPEN_KEYS_SIZE = 32;

/** TCP_CA_NAME_MAX. */
const CONGESTION_SIZE = 16;

/** The longest IP options (ip(7)). */
const IP_OPTIONS_SIZE = 40;

/** The longest extension header (RFC 8200): its length counts in units of 8 bytes, beyond the first. */
const EXTENSION_HEADER_SIZE = 2048;

/** Options besides those of CRIU's fields; the values of a connection are partly what its ends have come to. */
export function otherOptions(
  { family, type, proto }: SocketKind,
  { isConnection }: { readonly isConnection: boolean },
): SocketOptionPlace[] {
  const ints = (level: number, names: readonly number[]): SocketOptionPlace[] =>
    names.map((name) => ({ level, name, size: 4 }));
  const plain = type === SOCK_RAW ? 0 : proto;
  const isTcp = plain === inet.IPPROTO_TCP || plain === inet.IPPROTO_MPTCP;
  const isSix = family === AF_INET6;
  const sends = type !== SOCK_STREAM;
  const sizes = (level: number, names: readonly number[], size: number): SocketOptionPlace[] =>
    names.map((name) => ({ level, name, size }));
  return [
    ...socketOptions({ isConnection }),
    ...ints(so.SOL_SOCKET, isTcp ? [so.SO_TXREHASH] : []),
    ...(type === SOCK_RAW && isSix
      ? []
      : ints(inet.SOL_IP, [
          ...IP_OPTIONS,
          ...IP_MULTICAST_OPTIONS,
          ...(sends ? IP_SENDING_OPTIONS : []),
          ...(type === SOCK_RAW ? [inet.IP_ROUTER_ALERT] : []),
          // IPv6 sockets speak IPv4 too, with these.
          ...(isSix ? [inet.IP_TOS, inet.IP_TTL, inet.IP_PKTINFO] : []),
        ])),
    ...(type === SOCK_RAW && isSix ? [] : sizes(inet.SOL_IP, [inet.IP_OPTIONS], IP_OPTIONS_SIZE)),
    ...(isSix
      ? [
          ...ints(inet.SOL_IPV6, [...IPV6_OPTIONS, ...(sends ? IPV6_SENDING_OPTIONS : [])]),
          ...ints(inet.SOL_RAW, type === SOCK_RAW ? [inet.IPV6_CHECKSUM] : []),
          ...sizes(inet.SOL_IPV6, IPV6_STICKY_OPTIONS, EXTENSION_HEADER_SIZE),
        ]
      : []),
    ...(isTcp
      ? [
          ...ints(inet.SOL_TCP, TCP_OPTIONS),
          ...(isConnection ? [] : ints(inet.SOL_TCP, TCP_OPTIONS_BEFORE)),
          ...sizes(inet.SOL_TCP, [inet.TCP_CONGESTION], CONGESTION_SIZE),
          ...sizes(inet.SOL_TCP, [inet.TCP_FASTOPEN_KEY], FASTOPEN_KEYS_SIZE),
        ]
      : []),
    ...(plain === inet.IPPROTO_UDP ? ints(inet.SOL_UDP, UDP_OPTIONS) : []),
    ...(plain === inet.IPPROTO_UDPLITE
      ? ints(inet.SOL_UDPLITE, [...UDP_OPTIONS, inet.UDPLITE_SEND_CSCOV, inet.UDPLITE_RECV_CSCOV])
      : []),
  ];
}

/** IPv6 headers that go with every packet: the socket keeps them beyond its own structure. */
export function isSticky({ level, name }: Pick<RepriseSocketOption, "level" | "name">): boolean {
  return level === inet.SOL_IPV6 && IPV6_STICKY_OPTIONS.includes(name);
}

/** Options that decide which addresses a socket may have. */
function isEarly(level: number, name: number): boolean {
  if (level === inet.SOL_IP) {
    return name === inet.IP_TRANSPARENT || name === inet.IP_BIND_ADDRESS_NO_PORT;
  }
  return level === inet.SOL_IPV6 && name === inet.IPV6_TRANSPARENT;
}
