// Multicast groups that a socket has joined. The kernel tells of a socket only whether it is in a given group on a given
// interface (MCAST_MSFILTER, RFC 3678); which there are in its namespace stands in /proc/net/igmp and igmp6. CRIU loses them.

import { readFileSync } from "node:fs";
import type { RepriseMembership } from "../../images/schema/messages.generated.ts";
import { log } from "../../log.ts";
import { AF_INET, AF_INET6, IFNAMSIZ } from "../../sys/abi/socket.ts";
import * as inet from "../../sys/abi/inet.ts";
import { errnoName } from "../../sys/errno.ts";
import { trySyscall } from "../../sys/ffi.ts";
import { readSockaddr, sockaddr } from "./inet-address.ts";
import type { OptionArgument } from "./room-ahead.ts";

/** A group that somebody in the namespace is in. */
export interface Group {
  readonly family: number;
  readonly index: number;
  readonly interface: string;
  /** 4 or 16 bytes. */
  readonly bytes: Uint8Array;
}

/** Groups of the network namespace in which the engine's thread is. */
export function readGroups(): Group[] {
  return [...parseIgmp(readText("igmp")), ...parseIgmp6(readText("igmp6"))];
}

/** Sizes and offsets of struct group_filter: interface, group (struct sockaddr_storage), mode, number of sources, sources. */
const STORAGE = 128;
const GROUP_AT = 8;
const MODE_AT = GROUP_AT + STORAGE;
const COUNT_AT = MODE_AT + 4;
const SOURCES_AT = COUNT_AT + 4;
/** The kernel's limit on sources is a sysctl; its default is 10. */
const SOURCES_MAX = 64;

/** The groups, out of those of its namespace, that a socket is in. */
export function readMemberships(
  fd: number,
  family: number,
  groups: readonly Group[],
): RepriseMembership[] {
  return groups.flatMap((group) => {
    if (group.family === AF_INET6 && family === AF_INET) return [];
    const filter = groupFilter(group, SOURCES_MAX);
    const length = Buffer.alloc(4);
    length.writeInt32LE(filter.length);
    const level = levelOf(group.family);
    if (trySyscall("getsockopt", fd, level, inet.MCAST_MSFILTER, filter, length) < 0) return [];
    const count = Math.min(filter.readUInt32LE(COUNT_AT), SOURCES_MAX);
    const sources = Array.from({ length: count }, (_, at) => {
      const start = SOURCES_AT + at * STORAGE;
      return readSockaddr(filter.subarray(start, start + STORAGE))?.bytes ?? group.bytes;
    });
    return [
      {
        interface: group.interface,
        group: group.bytes,
        mode: filter.readUInt32LE(MODE_AT),
        sources: sources.map((bytes) => Uint8Array.from(bytes)),
      },
    ];
  });
}

/** What tells whether a socket is in any of some groups: each call fails for one that it is not in. */
export function membershipQuestions(family: number, groups: readonly Group[]): OptionArgument[] {
  return groups
    .filter((group) => group.family === AF_INET || family !== AF_INET)
    .map((group) => ({
      level: levelOf(group.family),
      name: inet.MCAST_MSFILTER,
      bytes: groupFilter(group, 0),
    }));
}

/** Joins a group again; one that this machine cannot give is told in the log. */
export function joinGroup(fd: number, id: number, membership: RepriseMembership): void {
  const family = membership.group.length === 4 ? AF_INET : AF_INET6;
  const index = interfaceIndex(fd, membership.interface);
  const group = { family, index, interface: membership.interface, bytes: membership.group };
  const level = levelOf(family);
  const join = groupFilter(group, 0).subarray(0, MODE_AT);
  let result =
    index < 0
      ? index
      : trySyscall("setsockopt", fd, level, inet.MCAST_JOIN_GROUP, join, join.length);
  const { mode, sources } = membership;
  if (result >= 0 && (mode !== inet.MCAST_EXCLUDE || sources.length > 0)) {
    const filter = groupFilter(group, sources.length);
    filter.writeUInt32LE(mode, MODE_AT);
    sources.forEach((bytes, at) =>
      filter.set(sockaddr({ family, port: 0, bytes, scope: 0 }), SOURCES_AT + at * STORAGE),
    );
    result = trySyscall("setsockopt", fd, level, inet.MCAST_MSFILTER, filter, filter.length);
  }
  if (result < 0) {
    const where = `${Buffer.from(membership.group).toString("hex")} on ${membership.interface}`;
    log.warn(`socket ${id}: multicast group ${where} is lost: ${errnoName(-result)}`);
  }
}

function levelOf(family: number): number {
  return family === AF_INET ? inet.SOL_IP : inet.SOL_IPV6;
}

function groupFilter({ family, index, bytes }: Group, sources: number): Buffer {
  const filter = Buffer.alloc(SOURCES_AT + sources * STORAGE);
  filter.writeUInt32LE(index, 0);
  filter.set(sockaddr({ family, port: 0, bytes, scope: 0 }), GROUP_AT);
  filter.writeUInt32LE(sources, COUNT_AT);
  return filter;
}

/** struct ifreq: name, then the index. */
const IFREQ_SIZE = 40;

/** Index of an interface in a socket's namespace, or the negative error number. */
export function interfaceIndex(fd: number, name: string): number {
  const request = Buffer.alloc(IFREQ_SIZE);
  request.write(name, 0, IFNAMSIZ - 1, "latin1");
  const result = trySyscall("ioctl", fd, inet.SIOCGIFINDEX, request);
  return result < 0 ? result : request.readInt32LE(IFNAMSIZ);
}

function readText(name: string): string {
  try {
    return readFileSync(`/proc/thread-self/net/${name}`, "latin1");
  } catch {
    return ""; // a kernel without multicast, or without IPv6
  }
}

/** A device line ("2\teth0 : 3 V3"), then a line for each group, which begins with the address as a word in memory. */
function parseIgmp(text: string): Group[] {
  const groups: Group[] = [];
  let device = { index: 0, interface: "" };
  for (const line of text.split("\n")) {
    const head = /^(\d+)\s+(\S+)/.exec(line);
    const group = /^\s+([0-9A-F]{8})\s/.exec(line)?.[1];
    if (head !== null) {
      device = { index: Number(head[1]), interface: (head[2] ?? "").replace(/:$/, "") };
    } else if (group !== undefined) {
      const bytes = Uint8Array.from(Buffer.from(group, "hex")).toReversed();
      groups.push({ family: AF_INET, ...device, bytes });
    }
  }
  return groups;
}

/** A line a group: index, device, address. */
function parseIgmp6(text: string): Group[] {
  return [...text.matchAll(/^(\d+)\s+(\S+)\s+([0-9a-f]{32})\s/gm)].map(
    ([, index, device, address]) => ({
      family: AF_INET6,
      index: Number(index),
      interface: device ?? "",
      bytes: Uint8Array.from(Buffer.from(address ?? "", "hex")),
    }),
  );
}
