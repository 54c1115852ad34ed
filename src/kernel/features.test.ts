import { describe, expect, it } from "vitest";
import { readFileSync, readdirSync } from "node:fs";
import { FEATURE_NAMES, isFeatureName, probeAll, probeFeature } from "./features.ts";

describe("probeFeature()", () => {
  it.each([
    "clone3_set_tid",
    "kcmp_epoll",
    "pidfd_store",
    "can_map_vdso",
    "timerfd",
    "ns_pid",
  ] as const)("finds %s, which every kernel from our floor up has", (name) => {
    expect(probeFeature(name)).toEqual({ name, supported: true, reason: "" });
  });

  it("gives a reason exactly when a feature is missing", () => {
    for (const { supported, reason } of FEATURE_NAMES.map((name) => probeFeature(name))) {
      expect(reason === "").toBe(supported);
    }
  });

  it("has incremental dumps whatever the kernel tracks", () => {
    expect(probeFeature("mem_dirty_track")).toMatchObject({ supported: true, reason: "" });
  });

  it("leaves no descriptor and no child behind", () => {
    const before = readdirSync("/proc/self/fd").length;
    probeAll(["basic", "extra", "experimental"]);
    expect(readdirSync("/proc/self/fd").length).toBe(before);
    const children = readFileSync(`/proc/self/task/${process.pid}/children`, "utf8");
    expect(children).toBe("");
  });
});

describe("isFeatureName()", () => {
  it("knows CRIU's names only", () => {
    expect(isFeatureName("uffd-noncoop")).toBe(true);
    expect(isFeatureName("map_files")).toBe(false);
    expect(isFeatureName("toString")).toBe(false);
  });
});
