// What a dump asks of every socket, all of it in one call of the interpreter: there may be thousands, and each alone would be asked some
// thirty times. While a room writes a socket, getOption finds the answers here.

import { assert } from "../../errors.ts";
import { encodeAhead } from "../../images/codec.ts";
import type { SkOptsEntry } from "../../images/schema/messages.generated.ts";
import * as inet from "../../sys/abi/inet.ts";
import * as nl from "../../sys/abi/netlink.ts";
import * as packet from "../../sys/abi/packet.ts";
import * as so from "../../sys/abi/socket.ts";
import { socketFamily, withKnownOptions } from "../../sys/socket.ts";
import type { FilesDump, OpenFile } from "../files/file-kind.ts";
import { MEMINFO_SIZE } from "./tcp-signatures.ts";
import { TCP_INFO_SIZE } from "./tcp-stream.ts";
import type { MadeOptions } from "./room-ahead.ts";
import { toldOf } from "./told.ts";
import { OptionQuestion, type SocketOptionPlace } from "./option-question.ts";

/** What collectOptions asks for, and of the filter its length. */
export const COLLECTED: readonly SocketOptionPlace[] = [
  ...[
    so.SO_SNDBUF,
    so.SO_RCVBUF,
    so.SO_REUSEADDR,
    so.SO_PRIORITY,
    so.SO_RCVLOWAT,
    so.SO_MARK,
    so.SO_PASSCRED,
    so.SO_PASSSEC,
    so.SO_DONTROUTE,
    so.SO_NO_CHECK,
    so.SO_REUSEPORT,
    so.SO_BROADCAST,
    so.SO_KEEPALIVE,
    so.SO_OOBINLINE,
    so.SO_BUF_LOCK,
  ].map((name) => ({ level: so.SOL_SOCKET, name, size: 4 })),
  { level: so.SOL_SOCKET, name: so.SO_SNDTIMEO, size: 16 },
  { level: so.SOL_SOCKET, name: so.SO_RCVTIMEO, size: 16 },
  { level: so.SOL_SOCKET, name: so.SO_LINGER, size: 8 },
  { level: so.SOL_SOCKET, name: so.SO_BINDTODEVICE, size: so.IFNAMSIZ },
  { level: so.SOL_SOCKET, name: so.SO_GET_FILTER, size: 0 },
];

const families = new WeakMap<OpenFile, number>();

/** AF_… of an open file that is a socket. @throws RepriseError SYSCALL */
export function familyOf(file: OpenFile, dump: FilesDump): number {
  const known = toldOf(dump.borrow(file));
  if (known !== undefined) return known.kind.family;
  let family = families.get(file);
  if (family === undefined) families.set(file, (family = socketFamily(dump.borrow(file))));
  return family;
}

interface Asking {
  readonly question: OptionQuestion;
  /** Options of the socket before of which the answers were the same. */
  alike: { readonly raw: Buffer; readonly opts: SkOptsEntry } | undefined;
}

/** By family, for good. */
const askings = new Map<number, Asking>();
let current: { readonly fd: number; readonly asking: Asking } | undefined;

/** Runs a step that looks at a socket of which the engine has the copy `fd`, and changes none of its options. */
export function askedOnce<T>(fd: number, family: number, step: () => T): T {
  assert(current === undefined, "one socket is looked at at a time");
  const known = toldOf(fd);
  if (known !== undefined) return withKnownOptions(fd, known, step);
  let asking = askings.get(family);
  if (asking === undefined) {
    asking = { question: new OptionQuestion(placesOf(family)), alike: undefined };
    askings.set(family, asking);
  }
  asking.question.ask(fd);
  current = { fd, asking };
  try {
    return withKnownOptions(fd, asking.question, step);
  } finally {
    current = undefined;
  }
}

/** Options of SOL_SOCKET: what was made of those of the last socket, if this one has answered the same. */
export function alikeOptions(fd: number, make: () => SkOptsEntry): SkOptsEntry {
  const known = toldOf(fd);
  if (known !== undefined) return toldOptions(known.made, make);
  if (current?.fd !== fd) return make();
  const { asking } = current;
  const { question, alike } = asking;
  if (alike !== undefined && question.hasAnswered(alike.raw, COLLECTED.length)) {
    // There may be thousands more.
    encodeAhead("sk_opts_entry", alike.opts);
    return alike.opts;
  }
  const opts = make();
  // Of a filter only the length is among the answers.
  if (opts.so_filter.length === 0) asking.alike = { raw: question.raw(COLLECTED.length), opts };
  return opts;
}

function toldOptions(made: MadeOptions, make: () => SkOptsEntry): SkOptsEntry {
  if (made.opts !== undefined) return made.opts;
  const opts = make();
  if (opts.so_filter.length > 0) return opts;
  encodeAhead("sk_opts_entry", opts);
  made.opts = opts;
  return opts;
}

/** All options that are asked of a socket at once. */
export function placesOf(family: number): SocketOptionPlace[] {
  const [six, four] = [family === so.AF_INET6, family === so.AF_INET];
  return [
    ...COLLECTED,
    ...ints(so.SOL_SOCKET, [so.SO_TYPE, so.SO_PROTOCOL]),
    { level: so.SOL_SOCKET, name: so.SO_NETNS_COOKIE, size: 8 },
    ...(family === so.AF_UNIX ? [{ level: so.SOL_SOCKET, name: so.SO_PEERCRED, size: 12 }] : []),
    ...(family === so.AF_PACKET ? ints(packet.SOL_PACKET, FURTHER_PACKET) : []),
    ...(family === so.AF_NETLINK ? ints(nl.SOL_NETLINK, FURTHER_NETLINK) : []),
    ...(four ? ints(inet.SOL_IP, IP_OPTIONS) : []),
    ...(six ? ints(inet.SOL_IPV6, IPV6_OPTIONS) : []),
    ...(four || six
      ? [
          { level: so.SOL_SOCKET, name: so.SO_PEERNAME, size: six ? 28 : 16 },
          { level: so.SOL_SOCKET, name: so.SO_MEMINFO, size: MEMINFO_SIZE },
          { level: inet.SOL_TCP, name: inet.TCP_INFO, size: TCP_INFO_SIZE },
          ...ints(so.SOL_SOCKET, [so.SO_PEEK_OFF]),
          ...ints(inet.SOL_TCP, TCP_OPTIONS),
          ...ints(inet.SOL_UDP, [inet.UDP_CORK]),
        ]
      : []),
  ];
}

function ints(level: number, names: readonly number[]): SocketOptionPlace[] {
  return names.map((name) => ({ level, name, size: 4 }));
}

/** Options that CRIU does not save. */
export const FURTHER_NETLINK = [
  nl.NETLINK_PKTINFO,
  nl.NETLINK_BROADCAST_ERROR,
  nl.NETLINK_NO_ENOBUFS,
  nl.NETLINK_LISTEN_ALL_NSID,
  nl.NETLINK_CAP_ACK,
  nl.NETLINK_EXT_ACK,
  nl.NETLINK_GET_STRICT_CHK,
];
export const FURTHER_PACKET = [
  packet.PACKET_TX_HAS_OFF,
  packet.PACKET_QDISC_BYPASS,
  packet.PACKET_IGNORE_OUTGOING,
];
const IP_OPTIONS = [inet.IP_FREEBIND, inet.IP_PKTINFO, inet.IP_TOS, inet.IP_TTL];
const IPV6_OPTIONS = [inet.IPV6_FREEBIND, inet.IPV6_RECVPKTINFO, inet.IPV6_V6ONLY];
const TCP_OPTIONS = [
  inet.TCP_KEEPCNT,
  inet.TCP_KEEPIDLE,
  inet.TCP_KEEPINTVL,
  inet.TCP_CORK,
  inet.TCP_NODELAY,
];
