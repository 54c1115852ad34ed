// UTS namespaces: host and domain name, see uts_namespaces(7). utsns-ID.img.

import { readFileSync } from "node:fs";
import { RepriseError } from "../../errors.ts";
import { syscall } from "../../sys/ffi.ts";
import { inNamespace } from "./enter.ts";
import type { NamespaceRoom } from "./room.ts";

export const utsRoom: NamespaceRoom = {
  kind: "uts",

  write({ id, pid }, { images }) {
    const entry = inNamespace("uts", { pid }, () => ({
      nodename: readName("hostname"),
      domainname: readName("domainname"),
    }));
    images.write("utsns", id, [entry]);
  },

  restore([namespace], { set, rootPid }) {
    const entry = set.namespaces.uts.get(namespace?.id ?? 0);
    if (entry === undefined) {
      throw new RepriseError(
        "IMAGE_MISSING",
        `cannot restore the UTS namespace: utsns-${namespace?.id}.img is missing`,
      );
    }
    inNamespace("uts", { pid: rootPid }, () => {
      setName("sethostname", entry.nodename);
      setName("setdomainname", entry.domainname);
    });
  },
};

/** The sysctls show the names of the namespace of the thread that reads. */
function readName(name: "hostname" | "domainname"): string {
  return readFileSync(`/proc/sys/kernel/${name}`, "utf8").replace(/\n$/, "");
}

function setName(call: "sethostname" | "setdomainname", name: string): void {
  const bytes = Buffer.from(name);
  // An empty buffer has no address that the kernel takes.
  syscall(call, Buffer.concat([bytes, Buffer.alloc(1)]), bytes.length);
}
