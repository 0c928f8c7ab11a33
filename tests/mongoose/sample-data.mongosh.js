// Insert default plans
db.plans.insertMany([
     {
          id: "free",
          name: "Free",
          description: "Perfect for getting started",
          price: 0,
          currency: "USD",
          interval: "MONTH",
          features: ["Up to 3 projects", "1GB storage", "1,000 API calls/month", "Community support"],
          limits: {
               projects: 3,
               storage: 1,
               apiCalls: 1000,
          },
          active: true,
     },
     {
          id: "pro",
          name: "Pro",
          description: "For professional developers",
          price: 29,
          currency: "USD",
          interval: "MONTH",
          features: ["Up to 100 projects", "50GB storage", "100,000 API calls/month", "Priority support", "Advanced analytics", "Custom integrations"],
          limits: {
               projects: 100,
               storage: 50,
               apiCalls: 100000,
          },
          stripePriceId: "price_pro_monthly",
          active: true,
     },
     {
          id: "enterprise",
          name: "Enterprise",
          description: "For large organizations",
          price: 99,
          currency: "USD",
          interval: "MONTH",
          features: ["Unlimited projects", "500GB storage", "1,000,000 API calls/month", "24/7 dedicated support", "Custom SLA", "On-premise deployment", "Advanced security"],
          limits: {
               projects: -1, // Unlimited
               storage: 500,
               apiCalls: 1000000,
          },
          stripePriceId: "price_enterprise_monthly",
          active: true,
     },
]);

// Insert sample coupons
db.coupons.insertMany([
     {
          code: "WELCOME20",
          name: "Welcome Discount",
          description: "20% off your first month",
          type: "PERCENTAGE",
          value: 20,
          currency: "USD",
          maxUses: 1000,
          usedCount: 0,
          validFrom: new Date(),
          validUntil: new Date(Date.now() + 365 * 24 * 60 * 60 * 1000), // 1 year
          applicablePlans: ["pro", "enterprise"],
          active: true,
     },
     {
          code: "STUDENT50",
          name: "Student Discount",
          description: "50% off for students",
          type: "PERCENTAGE",
          value: 50,
          currency: "USD",
          maxUses: 500,
          usedCount: 0,
          validFrom: new Date(),
          validUntil: new Date(Date.now() + 365 * 24 * 60 * 60 * 1000),
          applicablePlans: ["pro"],
          active: true,
     },
]);
