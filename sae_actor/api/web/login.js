// Who is there: the form for a token, the name in the header, and the way out. No script ever sees the cookie.
import { call } from "./wire.js";

const byId = (id) => document.getElementById(id);

/** Who the caller is: at once where no token is asked for or somebody is logged in, else after a login. */
export async function entered() {
  let who = await call("GET", "/api/session");
  if (who.tokens && !who.role) who = await login();
  byId("login").hidden = true;
  byId("main").hidden = byId("link").hidden = false;
  document.body.dataset.role = who.role;
  byId("steering-section").inert = who.role !== "operator";
  byId("who").hidden = !who.tokens;
  byId("who").firstElementChild.textContent = `${who.principal}${{ viewer: " (may read only)", user: " (may generate)" }[who.role] ?? ""}`;
  return who;
}

function login() {
  byId("login").hidden = false;
  byId("token").focus();
  return new Promise((resolve) => {
    byId("login-form").addEventListener("submit", async (event) => {
      event.preventDefault();
      byId("refused").textContent = "";
      try {
        const who = await call("POST", "/login", { token: byId("token").value });
        resolve(who);
      } catch (error) {
        byId("refused").textContent = error.message;
      } finally {
        byId("token").value = "";
      }
    });
  });
}

byId("logout").addEventListener("click", async () => {
  await call("POST", "/logout").catch(() => {});
  location.reload();
});

/** What a page can do whose login has ended: ask for a new one. */
export async function stillEntered() {
  const who = await call("GET", "/api/session");
  if (who.role !== document.body.dataset.role) location.reload();
}
