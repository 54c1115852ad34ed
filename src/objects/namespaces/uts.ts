// UTS namespaces: host and domain name, see uts_namespaces(7). utsns-ID.img.

import { closeSync, readFileSync } from "node:fs";
import { RepriseError } from "../../errors.ts";
import { syscall } from "../../sys/ffi.ts";
import type { Sight } from "../../tracee/witness.ts";
import { inNamespace, witnessIn } from "./enter.ts";
import { makeNested, openMade, type MadeNamespace } from "./nested.ts";
import type { NamespaceRoom, NamespacesRestore } from "./room.ts";

/** They show the names of the namespace of the thread that reads. */
const HOST_NAME = "/proc/sys/kernel/hostname";
const DOMAIN_NAME = "/proc/sys/kernel/domainname";

export const utsRoom: NamespaceRoom = {
  kind: "uts",

  write({ id, pid }, { images }) {
    const entry = inNamespace("uts", { pid }, () => ({
      nodename: readName(HOST_NAME),
      domainname: readName(DOMAIN_NAME),
    }));
    images.write("utsns", id, [entry]);
  },

  saveAhead({ id, pid }, { images }) {
    const sights: (Sight | undefined)[] = [];
    const witness = witnessIn("uts", pid, (looking) => {
      for (const path of [HOST_NAME, DOMAIN_NAME]) sights.push(looking.file(path));
    });
    if (witness === undefined) return undefined;
    const [nodename = "", domainname = ""] = sights.map((sight) =>
      sight === undefined ? "" : withoutEnd(witness.text(sight)),
    );
    images.write("utsns", id, [{ nodename, domainname }]);
    return {
      finish: () => witness.holds(),
      [Symbol.dispose]: () => witness[Symbol.dispose](),
    };
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

function readName(path: string): string {
  return withoutEnd(readFileSync(path, "utf8"));
}

function withoutEnd(text: string): string {
  return text.replace(/\n$/, "");
}

function setName(call: "sethostname" | "setdomainname", name: string): void {
  const bytes = Buffer.from(name);
  // An empty buffer has no address that the kernel takes.
  syscall(call, Buffer.concat([bytes, Buffer.alloc(1)]), bytes.length);
}
