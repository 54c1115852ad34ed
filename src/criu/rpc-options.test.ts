import { describe, expect, it } from "vitest";
import { decode, encode } from "../images/codec.ts";
import type { CriuOpts } from "../images/schema/messages.generated.ts";
import { parseOptions, type CriuOptions } from "./options.ts";
import { requestArguments } from "./rpc-options.ts";

/** As a client sends it. */
function optionsOf(fields: Omit<Parameters<typeof encode<"criu_opts">>[1], "images_dir_fd">): {
  words: readonly string[];
  options: CriuOptions;
} {
  const opts: CriuOpts = decode("criu_opts", encode("criu_opts", { images_dir_fd: 3, ...fields }));
  const words = requestArguments(opts);
  return { words, options: parseOptions([words]) };
}

describe("requestArguments()", () => {
  it("says nothing but the level of the log for a request without options", () => {
    expect(optionsOf({}).words).toEqual(["--verbosity=2"]);
  });

  it("has an option for what runc asks at a checkpoint", () => {
    const { options } = optionsOf({
      pid: 42,
      root: "/var/lib/x/rootfs",
      tcp_established: true,
      file_locks: false,
      shell_job: true,
      leave_running: true,
      ext_mnt: [{ key: "/etc/a:b", val: "/etc/a:b" }],
      external: ["net[4026532000]:extRootNetNS"],
      manage_cgroups: true,
      empty_ns: 0x40000000,
      orphan_pts_master: true,
      freeze_cgroup: "/sys/fs/cgroup/freezer/x",
      parent_img: "../before",
      track_mem: true,
      log_level: 4,
    });
    expect([...options.flags].toSorted()).toEqual(
      ["ghost-fiemap", "orphan-pts-master", "shell-job", "tcp-established", "track-mem"].toSorted(),
    );
    expect(options.values).toEqual({
      tree: "42",
      root: "/var/lib/x/rootfs",
      // Soft, but not in so many words.
      "manage-cgroups": "",
      "empty-ns": "net",
      "freeze-cgroup": "/sys/fs/cgroup/freezer/x",
      "prev-images-dir": "../before",
    });
    expect(options.lists).toEqual({
      external: ["net[4026532000]:extRootNetNS", "mnt[/etc/a:b]:/etc/a:b"],
    });
    expect(options).toMatchObject({ leave: "running", verbosity: 4 });
  });

  it("has an option for what runtimes ask at a restore", () => {
    const { options } = optionsOf({
      rst_sibling: true,
      inherit_fd: [{ key: "pipe:[7]", fd: 1 }],
      cg_root: [{ ctrl: "memory", path: "/m" }, { path: "/all" }],
      join_ns: [{ ns: "user", ns_file: "/proc/1/ns/user", extra_opt: "0,0" }],
      veths: [{ if_in: "eth0", if_out: "veth1" }],
      manage_cgroups_mode: 4,
      network_lock: 2,
      lsm_profile: "apparmor:x",
      unix_sk_ino: [{ inode: 5 }, { inode: 6 }],
      ext_unix_sk: true,
      cpu_cap: 3,
    });
    expect(options.flags.has("restore-sibling")).toBe(true);
    expect(options.lists).toEqual({
      "inherit-fd": ["fd[1]:pipe:[7]"],
      "cgroup-root": ["memory:/m", "/all"],
      "join-ns": ["user:/proc/1/ns/user,0,0"],
      "veth-pair": ["eth0=veth1"],
    });
    expect(options.values).toEqual({
      "manage-cgroups": "full",
      "network-lock": "nftables",
      "lsm-profile": "apparmor:x",
      "ext-unix-sk": "5,6",
      "cpu-cap": "fpu,cpu",
    });
  });

  it("sends pages to a server, but serves them itself with lazy pages", () => {
    const ps = { address: "::1", port: 27, fd: 9 };
    const { options } = optionsOf({ ps });
    expect(options.flags.has("page-server")).toBe(true);
    expect(options.values).toEqual({ address: "::1", port: "27", "ps-socket": "9" });
    const lazy = optionsOf({ ps: { port: -1 }, lazy_pages: true });
    expect(lazy.options.flags.has("page-server")).toBe(false);
    // A port of 16 bits that a client read as a number with a sign.
    expect(lazy.options.values).toEqual({ port: "65535" });
  });

  it("turns off by false what a configuration file turned on", () => {
    const { words } = optionsOf({ tcp_close: false, weak_sysctls: false });
    const options = parseOptions([["--tcp-close", "--weak-sysctls"], words]);
    expect(options.flags.has("tcp-close")).toBe(false);
    expect(options.flags.has("weak-sysctls")).toBe(false);
  });

  it.each([
    [{ empty_ns: 0x20000000 }, "cannot leave namespaces 0x20000000 empty"],
    [{ network_lock: 9 }, "unknown value 9 for network-lock"],
    [{ manage_cgroups_mode: 7 }, "unknown value 7 for manage-cgroups"],
  ])("refuses %j", (fields, text) => {
    expect(() => optionsOf(fields)).toThrow(text);
  });
});
