// UTS namespaces: host and domain name, see uts_namespaces(7). utsns-ID.img.

import { closeSync, readFileSync } from "node:fs";
import { RepriseError } from "../../errors.ts";
import { syscall } from "../../sys/ffi.ts";
import { inNamespace } from "./enter.ts";
import { makeNested, openMade, type MadeNamespace } from "./nested.ts";
import type { NamespaceRoom, NamespacesRestore } from "./room.ts";

export const utsRoom: NamespaceRoom = {
  kind: "uts",

  write({ id, pid }, { images }) {
    const entry = inNamespace("uts", { pid }, () => ({
      nodename: readName("hostname"),
      domainname: readName("domainname"),
    }));
    images.write("utsns", id, [entry]);
  },

  restore(namespaces, restore) {
    for (const made of makeNested("uts", namespaces, restore)) setNames(made, restore);
  },
};

function setNames(made: MadeNamespace, { set, rootPid }: NamespacesRestore): void {
  const { id } = made.namespace;
  const entry = set.namespaces.uts.get(id);
  if (entry === undefined) {
    throw new RepriseError(
      "IMAGE_MISSING",
      `cannot restore the UTS namespace: utsns-${id}.img is missing`,
    );
  }
  const fd = openMade(made, rootPid);
  try {
    inNamespace("uts", { fd }, () => {
      setName("sethostname", entry.nodename);
      setName("setdomainname", entry.domainname);
    });
  } finally {
    closeSync(fd);
  }
}

/** The sysctls show the names of the namespace of the thread that reads. */
function readName(name: "hostname" | "domainname"): string {
  return readFileSync(`/proc/sys/kernel/${name}`, "utf8").replace(/\n$/, "");
}

function setName(call: "sethostname" | "setdomainname", name: string): void {
  const bytes = Buffer.from(name);
  // An empty buffer has no address that the kernel takes.
  syscall(call, Buffer.concat([bytes, Buffer.alloc(1)]), bytes.length);
}
