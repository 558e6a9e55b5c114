// Keeps a part of a page fresh: [data-refresh] is replaced every two seconds by what that address answers.
// The next request waits for the last one's answer, and a hidden tab asks nothing.
"use strict";
for (const part of document.querySelectorAll("[data-refresh]")) {
  const stale = document.getElementById(part.dataset.refreshStale);
  let shown = "";

  const replace = (text) => {
    const selection = document.getSelection();
    const selecting = !selection.isCollapsed && part.contains(selection.anchorNode);
    if (text === shown || selecting) return;
    const focused = part.contains(document.activeElement) && document.activeElement.getAttribute("href");
    part.innerHTML = text;
    shown = text;
    if (!focused) return;
    for (const link of part.querySelectorAll("a[href]")) {
      if (link.getAttribute("href") === focused) link.focus({ preventScroll: true });
    }
  };

  const refresh = async () => {
    if (!document.hidden) {
      try {
        const answer = await fetch(part.dataset.refresh, { signal: AbortSignal.timeout(15000) });
        if (answer.redirected || answer.status === 403) {
          location.reload(); // signed out: the page itself asks to sign in again
          return;
        }
        if (!answer.ok) throw new Error(answer.status);
        replace(await answer.text());
        stale.hidden = true;
      } catch {
        stale.hidden = false;
      }
    }
    setTimeout(refresh, 2000);
  };
  setTimeout(refresh, 2000);
}
