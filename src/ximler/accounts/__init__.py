"""Who somebody is: registration, credentials, sessions. Owns `users`, `registrations` and `sessions`."""
