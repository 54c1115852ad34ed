// The network lock in nf_tables, told to the kernel by netlink: one table with a chain for what comes in and one for what
// goes out. Packets with the lock's mark pass; of the others all are dropped, or those of given connections. A table may be
// owned by the socket that made it: then it goes when that socket is closed, or its process dies. nft(8) shows the rules.

import { RepriseError } from "../../errors.ts";
import * as nft from "../../sys/abi/nftables.ts";
import {
  NETLINK_NETFILTER,
  NLM_F_APPEND,
  NLM_F_CREATE,
  NLM_F_EXCL,
} from "../../sys/abi/netlink.ts";
import { IPPROTO_TCP } from "../../sys/abi/inet.ts";
import { EINVAL, ENOENT, EOPNOTSUPP, errnoName } from "../../sys/errno.ts";
import { attribute, be32, NetlinkSocket, u32, type NetlinkMessage } from "../../sys/netlink.ts";
import type { LockedConnection } from "./lock.ts";

/** What a table drops: everything, or the packets of connections. */
export type Dropped = "all" | readonly LockedConnection[];

/** A lock in one network namespace, for as long as its socket is open. */
export class NftablesLock {
  readonly #socket: NetlinkSocket;
  readonly #mark: number;
  #owned: { readonly name: string; dropped: Dropped } | undefined;
  #generations = 0;

  /** In the network namespace of the calling thread. */
  constructor(mark: number) {
    this.#socket = new NetlinkSocket(NETLINK_NETFILTER);
    this.#mark = mark;
  }

  /** Whether the kernel has nf_tables and lets us use them. */
  isPossible(): boolean {
    return typeof this.#socket.tryRequest(message(nft.NFT_MSG_GETGEN, 0, [])) !== "number";
  }

  /** How many generations of the namespace's rules are due to this lock (NFTA_GEN_ID). */
  get generations(): number {
    return this.#generations;
  }

  /** Whether a lock was left under this name. */
  exists(table: string, _dropped: Dropped): boolean {
    const answer = this.#socket.tryRequest(
      message(nft.NFT_MSG_GETTABLE, 0, [attribute(nft.NFTA_TABLE_NAME, table)]),
    );
    return typeof answer !== "number";
  }

  /**
   * Drops packets as long as this lock is open.
   * @throws RepriseError SYSCALL
   */
  drop(table: string, dropped: Dropped): void {
    const isOwned = this.#make(table, dropped, nft.NFT_TABLE_F_OWNER);
    // Kernels before 5.12 have no owners.
    if (!isOwned) this.#must("lock", this.#tryMake(table, dropped, 0));
    this.#owned = { name: table, dropped };
  }

  /** Drops the packets of more connections. @throws RepriseError SYSCALL */
  dropMore(connections: readonly LockedConnection[]): void {
    const owned = this.#owned;
    if (owned === undefined || owned.dropped === "all") return;
    this.#must("lock", this.#commit(elements(owned.name, connections)));
    owned.dropped = [...owned.dropped, ...connections];
  }

  /** Leaves the same lock behind, in a table that belongs to nobody. @throws RepriseError SYSCALL */
  leave(table: string): void {
    if (this.#owned !== undefined) this.#must("lock", this.#tryMake(table, this.#owned.dropped, 0));
  }

  /** Takes a table away that was left. @throws RepriseError SYSCALL */
  remove(table: string, _dropped?: Dropped): void {
    const error = this.#commit([
      message(nft.NFT_MSG_DELTABLE, 0, [attribute(nft.NFTA_TABLE_NAME, table)]),
    ]);
    if (error !== -ENOENT) this.#must("unlock", error);
  }

  /** Ends what `drop` began. A table that goes with its socket would make us wait for all processors. */
  close(): void {
    try {
      if (this.#owned !== undefined) this.remove(this.#owned.name);
    } finally {
      this.#socket.close();
    }
  }

  #make(table: string, dropped: Dropped, flags: number): boolean {
    const error = this.#tryMake(table, dropped, flags);
    if (error === -EINVAL || error === -EOPNOTSUPP) return false;
    this.#must("lock", error);
    return true;
  }

  #tryMake(table: string, dropped: Dropped, flags: number): number {
    const made = NLM_F_CREATE | NLM_F_EXCL;
    const messages = [
      message(nft.NFT_MSG_NEWTABLE, made, [
        attribute(nft.NFTA_TABLE_NAME, table),
        attribute(nft.NFTA_TABLE_FLAGS, be32(flags)),
      ]),
    ];
    if (dropped !== "all") messages.push(...SETS.map((set) => newSet(table, set)));
    for (const [name, hook] of CHAINS) {
      messages.push(newChain(table, { name, hook, policy: dropped === "all" ? 0 : 1 }));
      messages.push(newRule(table, name, [...loadMark(this.#mark), verdict(nft.NF_ACCEPT)]));
      if (dropped !== "all") {
        for (const set of SETS) {
          messages.push(newRule(table, name, [...lookUp(set), verdict(nft.NF_DROP)]));
        }
      }
    }
    if (dropped !== "all") messages.push(...elements(table, dropped));
    return this.#commit(messages);
  }

  #commit(messages: readonly NetlinkMessage[]): number {
    if (messages.length === 0) return 0;
    const edge = Buffer.from([0, 0, 0, nft.NFNL_SUBSYS_NFTABLES]);
    const error = this.#socket.tryBatch([
      { type: nft.NFNL_MSG_BATCH_BEGIN, body: edge },
      ...messages,
      { type: nft.NFNL_MSG_BATCH_END, body: edge },
    ]);
    if (error === 0) this.#generations += 1;
    return error;
  }

  #must(what: "lock" | "unlock", error: number): void {
    if (error >= 0) return;
    throw new RepriseError(
      "SYSCALL",
      `cannot ${what} the network: nf_tables: ${errnoName(-error)}`,
      {
        errno: errnoName(-error),
        hint: "It needs CAP_NET_ADMIN. Choose another method with --network-lock: iptables, or skip if packets are kept away otherwise.",
      },
    );
  }
}

const CHAINS = [
  ["output", nft.NF_INET_LOCAL_OUT],
  ["input", nft.NF_INET_LOCAL_IN],
] as const;

/** A set of connections: address and port of the sender, and of the receiver. */
interface ConnectionSet {
  readonly id: number;
  readonly name: string;
  readonly protocol: number;
  readonly addressSize: number;
  /** Offset of the sender's address in the IP header; the receiver's follows. */
  readonly addresses: number;
  /** What nft(8) calls the parts: 7 ipv4_addr, 8 ipv6_addr, 13 inet_service, 6 bits each. */
  readonly keyType: number;
}

const SETS: readonly ConnectionSet[] = [
  {
    id: 1,
    name: "conns4",
    protocol: nft.NFPROTO_IPV4,
    addressSize: 4,
    addresses: 12,
    keyType: 0x1cd1cd,
  },
  {
    id: 2,
    name: "conns6",
    protocol: nft.NFPROTO_IPV6,
    addressSize: 16,
    addresses: 8,
    keyType: 0x20d20d,
  },
];

/** Every part of a key fills whole words. */
function keySize({ addressSize }: ConnectionSet): number {
  return 2 * (addressSize + 4);
}

function newSet(table: string, set: ConnectionSet): NetlinkMessage {
  return message(nft.NFT_MSG_NEWSET, NLM_F_CREATE, [
    attribute(nft.NFTA_SET_TABLE, table),
    attribute(nft.NFTA_SET_NAME, set.name),
    attribute(nft.NFTA_SET_FLAGS, be32(0)),
    attribute(nft.NFTA_SET_KEY_TYPE, be32(set.keyType)),
    attribute(nft.NFTA_SET_KEY_LEN, be32(keySize(set))),
    attribute(nft.NFTA_SET_ID, be32(set.id)),
  ]);
}

function newChain(
  table: string,
  chain: { readonly name: string; readonly hook: number; readonly policy: number },
): NetlinkMessage {
  return message(nft.NFT_MSG_NEWCHAIN, NLM_F_CREATE, [
    attribute(nft.NFTA_CHAIN_TABLE, table),
    attribute(nft.NFTA_CHAIN_NAME, chain.name),
    attribute(nft.NFTA_CHAIN_TYPE, "filter"),
    attribute(nft.NFTA_CHAIN_HOOK, [
      attribute(nft.NFTA_HOOK_HOOKNUM, be32(chain.hook)),
      attribute(nft.NFTA_HOOK_PRIORITY, be32(0)),
    ]),
    attribute(nft.NFTA_CHAIN_POLICY, be32(chain.policy)),
  ]);
}

function newRule(table: string, chain: string, expressions: readonly Buffer[]): NetlinkMessage {
  return message(nft.NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, [
    attribute(nft.NFTA_RULE_TABLE, table),
    attribute(nft.NFTA_RULE_CHAIN, chain),
    attribute(nft.NFTA_RULE_EXPRESSIONS, expressions),
  ]);
}

/** One message for each set that gets elements: both directions of every connection. */
function elements(table: string, connections: readonly LockedConnection[]): NetlinkMessage[] {
  return SETS.flatMap((set) => {
    const keys = new Map<string, Buffer>();
    for (const { local, remote } of connections) {
      if ((local.bytes.length === 4) !== (set.addressSize === 4)) continue;
      for (const [from, to] of [
        [local, remote],
        [remote, local],
      ] as const) {
        const key = Buffer.concat([from.bytes, port(from.port), to.bytes, port(to.port)]);
        keys.set(key.toString("latin1"), key);
      }
    }
    if (keys.size === 0) return [];
    const list = [...keys.values()].map((key) =>
      attribute(nft.NFTA_LIST_ELEM, [
        attribute(nft.NFTA_SET_ELEM_KEY, [attribute(nft.NFTA_DATA_VALUE, key)]),
      ]),
    );
    return pieces(list).map((part) =>
      message(nft.NFT_MSG_NEWSETELEM, NLM_F_CREATE, [
        attribute(nft.NFTA_SET_ELEM_LIST_TABLE, table),
        attribute(nft.NFTA_SET_ELEM_LIST_SET, set.name),
        attribute(nft.NFTA_SET_ELEM_LIST_ELEMENTS, part),
      ]),
    );
  });
}

/** An attribute holds 64 KiB at most. */
function pieces(list: readonly Buffer[]): Buffer[][] {
  const AT_MOST = 512;
  return Array.from({ length: Math.ceil(list.length / AT_MOST) }, (_, index) =>
    list.slice(index * AT_MOST, (index + 1) * AT_MOST),
  );
}

function port(number: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt16BE(number);
  return bytes;
}

/** Goes on if the packet has the mark. */
function loadMark(mark: number): Buffer[] {
  return [meta(nft.NFT_META_MARK), equals(u32(mark))];
}

/** Goes on if the packet belongs to a connection of the set. */
function lookUp(set: ConnectionSet): Buffer[] {
  const [address, rest] = [nft.NFT_PAYLOAD_NETWORK_HEADER, nft.NFT_PAYLOAD_TRANSPORT_HEADER];
  const words = set.addressSize / 4;
  const register = (offset: number): number => nft.NFT_REG32_00 + offset;
  return [
    meta(nft.NFT_META_NFPROTO),
    equals(Buffer.from([set.protocol])),
    meta(nft.NFT_META_L4PROTO),
    equals(Buffer.from([IPPROTO_TCP])),
    load(register(0), { base: address, offset: set.addresses, length: set.addressSize }),
    load(register(words), { base: rest, offset: 0, length: 2 }),
    load(register(words + 1), {
      base: address,
      offset: set.addresses + set.addressSize,
      length: set.addressSize,
    }),
    load(register(2 * words + 1), { base: rest, offset: 2, length: 2 }),
    expression("lookup", [
      attribute(nft.NFTA_LOOKUP_SET, set.name),
      attribute(nft.NFTA_LOOKUP_SET_ID, be32(set.id)),
      attribute(nft.NFTA_LOOKUP_SREG, be32(nft.NFT_REG32_00)),
    ]),
  ];
}

function meta(key: number): Buffer {
  return expression("meta", [
    attribute(nft.NFTA_META_KEY, be32(key)),
    attribute(nft.NFTA_META_DREG, be32(nft.NFT_REG32_00)),
  ]);
}

function equals(value: Buffer): Buffer {
  return expression("cmp", [
    attribute(nft.NFTA_CMP_SREG, be32(nft.NFT_REG32_00)),
    attribute(nft.NFTA_CMP_OP, be32(nft.NFT_CMP_EQ)),
    attribute(nft.NFTA_CMP_DATA, [attribute(nft.NFTA_DATA_VALUE, value)]),
  ]);
}

function load(
  register: number,
  from: { readonly base: number; readonly offset: number; readonly length: number },
): Buffer {
  return expression("payload", [
    attribute(nft.NFTA_PAYLOAD_DREG, be32(register)),
    attribute(nft.NFTA_PAYLOAD_BASE, be32(from.base)),
    attribute(nft.NFTA_PAYLOAD_OFFSET, be32(from.offset)),
    attribute(nft.NFTA_PAYLOAD_LEN, be32(from.length)),
  ]);
}

function verdict(code: number): Buffer {
  return expression("immediate", [
    attribute(nft.NFTA_IMMEDIATE_DREG, be32(nft.NFT_REG_VERDICT)),
    attribute(nft.NFTA_IMMEDIATE_DATA, [
      attribute(nft.NFTA_DATA_VERDICT, [attribute(nft.NFTA_VERDICT_CODE, be32(code))]),
    ]),
  ]);
}

function expression(name: string, data: readonly Buffer[]): Buffer {
  return attribute(nft.NFTA_LIST_ELEM, [
    attribute(nft.NFTA_EXPR_NAME, name),
    attribute(nft.NFTA_EXPR_DATA, data),
  ]);
}

/** struct nfgenmsg: family, version, resource. */
function message(type: number, flags: number, parts: readonly Buffer[]): NetlinkMessage {
  return {
    type: (nft.NFNL_SUBSYS_NFTABLES << 8) | type,
    flags,
    body: Buffer.concat([Buffer.from([nft.NFPROTO_INET, 0, 0, 0]), ...parts]),
  };
}
