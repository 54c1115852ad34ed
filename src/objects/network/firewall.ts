// The firewall rules of a network namespace: nft(8)'s listing, and iptables-save(8)'s where the kernel's older tables are in
// use. Both languages are too large for us, so their programs are run, in the namespace, and only when there are rules.

import { readFileSync } from "node:fs";
import { RepriseError } from "../../errors.ts";
import { NETLINK_NETFILTER } from "../../sys/abi/netlink.ts";
import * as nft from "../../sys/abi/nftables.ts";
import { attributes, NetlinkSocket } from "../../sys/netlink.ts";

export type FirewallImage = "iptables" | "ip6tables" | "nftables";

/** Where the older tables in use are told, in the namespace of the reader. */
export const LEGACY = {
  iptables: "/proc/thread-self/net/ip_tables_names",
  ip6tables: "/proc/thread-self/net/ip6_tables_names",
} as const;

/**
 * The rules in the namespace of the calling thread, without those of a network lock; empty where there are none.
 * @throws RepriseError UNSUPPORTED when a program is missing, SYSCALL
 */
export function readFirewall(): Readonly<Record<FirewallImage, string>> {
  const legacy = (kind: "iptables" | "ip6tables"): string =>
    hasTables(LEGACY[kind]) ? withoutLocks(run(`${kind}-legacy-save`, [], "")) : "";
  const tables = nftTables().filter((name) => !isLock(name));
  return {
    iptables: legacy("iptables"),
    ip6tables: legacy("ip6tables"),
    nftables: tables.length === 0 ? "" : withoutLocks(run("nft", ["list", "ruleset"], "")),
  };
}

/** Loads rules into the namespace of the calling thread. @throws RepriseError UNSUPPORTED, SYSCALL */
export function restoreFirewall(kind: FirewallImage, rules: string): void {
  if (rules.trim() === "") return;
  if (kind === "nftables") run("nft", ["-f", "-"], withoutLocks(rules));
  else run(`${kind}-legacy-restore`, ["-w"], withoutLocks(rules));
}

function hasTables(list: string): boolean {
  try {
    return readFileSync(list, "utf8").trim() !== "";
  } catch {
    // The kernel does not have them, or they are not loaded.
    return false;
  }
}

/** The generation of the rules of nf_tables in a socket's namespace, another one after each change; undefined on a kernel without. */
export function rulesGeneration(netfilter: NetlinkSocket): number | undefined {
  const type = (nft.NFNL_SUBSYS_NFTABLES << 8) | nft.NFT_MSG_GETGEN;
  const answer = netfilter.tryRequest({ type, body: Buffer.alloc(NFGENMSG_SIZE) });
  const [body] = typeof answer === "number" ? [] : answer;
  return body && attributes(body, NFGENMSG_SIZE).get(nft.NFTA_GEN_ID)?.readUInt32BE(0);
}

/** Names of the tables of all families. */
function nftTables(): string[] {
  const socket = new NetlinkSocket(NETLINK_NETFILTER);
  try {
    const type = (nft.NFNL_SUBSYS_NFTABLES << 8) | nft.NFT_MSG_GETTABLE;
    return socket
      .dump({ type, body: Buffer.alloc(NFGENMSG_SIZE) })
      .map((body) => attributes(body, NFGENMSG_SIZE).get(nft.NFTA_TABLE_NAME))
      .map((name) => name?.toString("latin1").replace(/\0.*$/s, "") ?? "");
  } catch (error) {
    // A kernel without nf_tables.
    if (error instanceof RepriseError && error.code === "SYSCALL") return [];
    throw error;
  } finally {
    socket.close();
  }
}

const NFGENMSG_SIZE = 4;

function isLock(table: string): boolean {
  return /^(CRIU-|reprise-)/.test(table);
}

/** Rules without those of network locks, which are in CRIU's images: it locks before it saves. */
function withoutLocks(rules: string): string {
  return rules
    .replace(/^table inet (CRIU-|reprise-)\S+ \{[^]*?^\}\n?/gm, "")
    .replace(/^\tchain CRIU \{[^]*?^\t\}\n+/gm, "")
    .replace(/^.*jump CRIU$\n/gm, "")
    .replace(/^(:CRIU |-A CRIU |-A \w+ -j CRIU$).*\n/gm, "");
}

function run(program: string, args: readonly string[], input: string): string {
  const { execFileSync } = process.getBuiltinModule("node:child_process");
  try {
    return execFileSync(program, args, {
      input,
      encoding: "utf8",
      stdio: ["pipe", "pipe", "pipe"],
    });
  } catch (error) {
    const { code, stderr } = error as { code?: string; stderr?: string };
    if (code === "ENOENT") {
      throw new RepriseError(
        "UNSUPPORTED",
        `cannot carry over the firewall rules of the network namespace: ${program} is not installed`,
        {
          hint: "Install it (nftables or iptables), or keep the namespace empty with --empty-ns net.",
          cause: error,
        },
      );
    }
    const said = stderr?.trim().split("\n")[0] ?? String(error);
    throw new RepriseError(
      "SYSCALL",
      `cannot carry over the firewall rules of the network namespace: ${program}: ${said}`,
      {
        hint: "The program's version or a kernel module may be missing that the rules need.",
        cause: error,
      },
    );
  }
}
