// How far a target is, in words, once there is nothing to measure right now.

/** `{state, text}` of a target as `GET /v1/agents/self` describes it. */
export function standingOf({ kits, latency_models: models }) {
  if (!kits.length && !models.length) {
    return waiting("Connected. Nothing is asked of this device yet: start a search on it.");
  }
  if (kits.some(({ status }) => status === "measuring")) {
    return waiting(
      "The rest is leased to another agent of this target, or to this page before it was " +
        "closed. It comes back within minutes.",
    );
  }
  const without = kits.filter(
    (kit) => !models.some(({ search_space }) => search_space === kit.search_space),
  );
  const failed = without.reduce((sum, kit) => sum + kit.failed, 0);
  if (failed) {
    const what = failed === 1 ? "1 model" : `${failed} models`;
    return waiting(
      `All is tried, but ${what} could not be measured here. The latency model is fitted ` +
        "from the rest, if that is enough.",
    );
  }
  if (without.length) {
    return waiting("All is measured. The latency model is waiting for a worker to fit it.");
  }
  const text = "Done. You may close this page; left open, it measures for searches.";
  return { state: "done", text };
}

function waiting(text) {
  return { state: "waiting", text };
}
