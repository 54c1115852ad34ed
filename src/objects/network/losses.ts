// What is in a network namespace and in no image, so that it is told: virtual servers (ipvsadm(8)), and security associations of IPsec,
// whose counters must not be used twice (see ipsec.ts), and multicast addresses of devices that somebody added (ip-maddress(8)).

import { readFileSync } from "node:fs";
import { hasAssociations } from "./ipsec.ts";

/** Of the namespace of who opens it; there are some lines above the first server. */
export const VIRTUAL_SERVERS = "/proc/thread-self/net/ip_vs";
const IPVS_HEAD = 3;

/** What the namespace of the calling thread will lose. */
export function networkLosses(): string[] {
  return [
    ...(hasAssociations()
      ? ["network namespace: its IPsec security associations are not saved"]
      : []),
    ...addedGroups().map(
      ([device, address]) =>
        `network device ${device}: its multicast address ${address} is not saved`,
    ),
    ...(hasVirtualServers() ? ["network namespace: its virtual servers (IPVS) are not saved"] : []),
  ];
}

/** /proc/net/dev_mcast: number and name of the device, users, how often somebody added it (SIOCADDMULTI), address. */
function addedGroups(): (readonly [string, string])[] {
  try {
    const lines = readFileSync("/proc/thread-self/net/dev_mcast", "latin1").split("\n");
    return lines.flatMap((line) => {
      const [, device = "", , added, address = ""] = line.trim().split(/\s+/);
      return Number(added) > 0 ? [[device, address.replace(/..(?=.)/g, "$&:")] as const] : [];
    });
  } catch {
    // A kernel without.
    return [];
  }
}

function hasVirtualServers(): boolean {
  try {
    const lines = readFileSync(VIRTUAL_SERVERS, "utf8").trim().split("\n");
    return lines.length > IPVS_HEAD;
  } catch {
    return false;
  }
}
